//! ipsets over netlink: no process for any of them.

mod constants;
mod message;

use std::{collections::BTreeMap, time::Duration};

use egressgateway::{Error, ErrorKind, WriteHook, model::Family};
use imbl::OrdMap;
use ipnet::IpNet;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::Instant;

use crate::{
    names::SET_PREFIX,
    sets::set::{Entry, Kind, Set},
    transition::plan::SetChange,
};
use constants::{
    CMD_ADD, CMD_CREATE, CMD_DEL, CMD_DESTROY, CMD_LIST, CMD_SWAP, CMD_TYPE, ENTRIES_PER_MESSAGE,
    ERR_BUSY, ERR_PRIVATE, ERRORS, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLMSG_DONE, NLMSG_ERROR,
    NO_SUBSYSTEM,
};
use message::{Request, answers, listed};

/// How long a set may be in use by rules that are gone.
const LINGERING: Duration = Duration::from_secs(4);

/// A socket to the kernel's ipset.
pub(crate) struct Ipset {
    socket: TokioSocket,
    sequence: u32,
}

/// Why the kernel refused something: an errno or one of ipset's own numbers, and the entry that it
/// is about, counted from 1.
struct Refusal {
    errno: i32,
    entry: Option<usize>,
}

impl Ipset {
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind_auto()?;
            socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
            Ok(Self {
                socket,
                sequence: 0,
            })
        };
        open().map_err(|error: std::io::Error| {
            Error::from_io(error, "open a netlink socket for ipset")
        })
    }

    /// Whether the kernel has the set types, with packet marks.
    pub(crate) async fn probe(&mut self) -> Result<(), Error> {
        for kind in Kind::ALL {
            for family in Family::ALL {
                let context = format!("ipset type {} for {family}", kind.name());
                let needed = kind.revision();
                match self
                    .ask(Request::new(CMD_TYPE, 0).kind(kind, family), &context)
                    .await?
                    .0
                {
                    Some(Refusal { errno, .. })
                        if Error::from_errno(errno, "").kind == ErrorKind::Permission =>
                    {
                        let advice = "ipset needs CAP_NET_ADMIN in the host's network namespace";
                        return Err(Error::from_errno(errno, advice));
                    }
                    Some(refusal) => {
                        let option = if kind == Kind::Addresses {
                            "CONFIG_IP_SET_HASH_IP"
                        } else {
                            "CONFIG_IP_SET_HASH_NET"
                        };
                        let context = format!(
                            "the kernel has no {context} of revision {needed}: CONFIG_IP_SET and {option} are needed"
                        );
                        return Err(Error::new(ErrorKind::Unsupported, context)
                            .with_source(error(&refusal, String::new()).chain()));
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// All sets of ours.
    pub(crate) async fn list(&mut self) -> Result<OrdMap<String, Set>, Error> {
        let (refusal, bodies) = self
            .ask(Request::new(CMD_LIST, NLM_F_DUMP), "list ipsets")
            .await?;
        match refusal {
            Some(Refusal {
                errno: NO_SUBSYSTEM,
                ..
            }) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the kernel has no ipset: CONFIG_IP_SET is needed",
                ));
            }
            Some(refusal) => return Err(error(&refusal, "list ipsets".into())),
            None => {}
        }
        Ok(sets(bodies.iter().map(Vec::as_slice)))
    }

    /// Does one change, and asks `hook` before each message. What is there already, or not there
    /// any more, is a conflict.
    pub(crate) async fn change(
        &mut self,
        change: &SetChange,
        hook: &dyn WriteHook,
    ) -> Result<(), Error> {
        match change {
            SetChange::Create(name, shape) => {
                hook.before("create ipset")?;
                let request = Request::new(CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL)
                    .set(name)
                    .shape(*shape);
                self.write(request, format!("create ipset {name} ({shape})"))
                    .await
            }
            SetChange::Destroy(name) => {
                hook.before("destroy ipset")?;
                self.destroy(name).await
            }
            SetChange::Swap { set, with } => {
                hook.before("swap ipsets")?;
                self.write(
                    Request::new(CMD_SWAP, 0).set(set).second(with),
                    format!("swap ipsets {set} and {with}"),
                )
                .await
            }
            SetChange::Add {
                set,
                kind,
                entries,
                new,
            } => {
                let flags = if *new { NLM_F_EXCL } else { 0 };
                for entries in entries.chunks(ENTRIES_PER_MESSAGE) {
                    hook.before("add to ipset")?;
                    let request = Request::new(CMD_ADD, flags)
                        .set(set)
                        .entries(*kind, entries, true);
                    self.write_entries(request, &format!("add to ipset {set}"), entries)
                        .await?;
                }
                Ok(())
            }
            SetChange::Delete { set, kind, entries } => {
                for entries in entries.chunks(ENTRIES_PER_MESSAGE) {
                    hook.before("delete from ipset")?;
                    let request = Request::new(CMD_DEL, NLM_F_EXCL)
                        .set(set)
                        .entries(*kind, entries, false);
                    self.write_entries(request, &format!("delete from ipset {set}"), entries)
                        .await?;
                }
                Ok(())
            }
        }
    }

    /// The rules that referred to the set are gone before it; but `nf_tables` lets go of what a
    /// rule refers to from a work queue, a moment after the transaction that deleted the rule.
    async fn destroy(&mut self, name: &str) -> Result<(), Error> {
        let (context, began, mut pause) = (
            format!("destroy ipset {name}"),
            Instant::now(),
            LINGERING / 1000,
        );
        loop {
            match self
                .ask(Request::new(CMD_DESTROY, 0).set(name), &context)
                .await?
                .0
            {
                None => return Ok(()),
                Some(Refusal {
                    errno: ERR_BUSY, ..
                }) if began.elapsed() < LINGERING => tokio::time::sleep(pause).await,
                Some(refusal) => return Err(error(&refusal, context)),
            }
            pause = (pause * 2).min(LINGERING / 20);
        }
    }

    async fn write(&mut self, request: Request, context: String) -> Result<(), Error> {
        match self.ask(request, &context).await?.0 {
            Some(refusal) => Err(error(&refusal, context)),
            None => Ok(()),
        }
    }

    async fn write_entries(
        &mut self,
        request: Request,
        context: &str,
        entries: &[(IpNet, Entry)],
    ) -> Result<(), Error> {
        let Some(refusal) = self.ask(request, context).await?.0 else {
            return Ok(());
        };
        let entry = refusal
            .entry
            .and_then(|line| entries.get(line - 1))
            .or(entries.first().filter(|_| entries.len() == 1));
        Err(error(
            &refusal,
            entry.map_or_else(
                || context.to_owned(),
                |(net, _)| format!("{context}: {net}"),
            ),
        ))
    }

    /// Sends a request and waits for its end: what was refused, and the bodies of all messages that
    /// came.
    async fn ask(
        &mut self,
        request: Request,
        context: &str,
    ) -> Result<(Option<Refusal>, Vec<Vec<u8>>), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let failed = |error| Error::from_io(error, context);
        let sent = request.finish(self.sequence);
        self.socket.send(&sent).await.map_err(failed)?;
        let mut bodies = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().await.map_err(failed)?;
            for answer in answers(&datagram).filter(|answer| answer.sequence == self.sequence) {
                match answer.kind {
                    NLMSG_ERROR if answer.errno() == 0 => return Ok((None, bodies)),
                    NLMSG_ERROR => {
                        return Ok((
                            Some(Refusal {
                                errno: answer.errno(),
                                entry: answer.refused_entry(),
                            }),
                            bodies,
                        ));
                    }
                    NLMSG_DONE => return Ok((None, bodies)),
                    _ => bodies.push(answer.body.to_vec()),
                }
            }
        }
    }
}

/// Our sets in the messages of a listing.
fn sets<'a>(bodies: impl Iterator<Item = &'a [u8]>) -> OrdMap<String, Set> {
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    for listed in bodies
        .filter_map(listed)
        .filter(|listed| listed.name.starts_with(SET_PREFIX))
    {
        let set = sets.entry(listed.name).or_default();
        set.shape = set.shape.or(listed.shape);
        set.entries.extend(listed.entries);
    }
    sets.into_iter().collect()
}

fn error(refusal: &Refusal, context: String) -> Error {
    if refusal.errno < ERR_PRIVATE {
        return Error::from_errno(refusal.errno, context);
    }
    let known = ERRORS.iter().find(|(number, ..)| *number == refusal.errno);
    let (errno, words) = known.map_or((22, "ipset gave no reason"), |(_, errno, words)| {
        (*errno, *words)
    });
    Error::new(Error::from_errno(errno, "").kind, context)
        .with_source(format!("{words} (ipset error {})", refusal.errno))
}

/// For fuzz targets: the sets of a listing, all of whose messages are written and read again.
pub(crate) fn fuzz(datagram: &[u8]) -> OrdMap<String, Set> {
    for answer in answers(datagram) {
        let _ = (answer.errno(), answer.refused_entry());
        let Some(read) = listed(answer.body) else {
            continue;
        };
        let mut request = Request::new(CMD_ADD, 0).set(&read.name);
        if let Some(shape) = read.shape {
            request = request.shape(shape);
        }
        let written = request
            .entries(Kind::Networks, &read.entries, true)
            .finish(answer.sequence);
        let again = answers(&written).next();
        let Some((sequence, again)) =
            again.and_then(|again| Some((again.sequence, listed(again.body)?)))
        else {
            panic!("what was written can't be read");
        };
        assert_eq!(sequence, answer.sequence);
        assert_eq!(again, read, "read, written and read again");
    }
    assert!(answers(datagram).count() <= datagram.len());
    sets(answers(datagram).map(|answer| answer.body))
}
