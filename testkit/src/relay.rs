//! A way to a server that can hold back what clients send and deliver it late, as a congested or
//! broken network does.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::lab::Namespace;

/// How often it is looked whether the relay has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// Passes connections on to a server. Dropped: takes no more of them.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    held: Mutex<bool>,
    released: Condvar,
    requests: AtomicUsize,
    handshakes: AtomicUsize,
}

/// First byte of a record of TLS that belongs to a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

impl Relay {
    /// Listens at `at` in a namespace, and leads every connection to `to`.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn start(namespace: &Namespace, at: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = namespace.listen_tcp(at)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let (namespace, relay) = (
            namespace.clone(),
            Self {
                shared: Arc::clone(&shared),
            },
        );
        thread::Builder::new()
            .name("relay".into())
            .spawn(move || namespace.move_in().map(|()| accept(&listener, to, &shared)))?;
        Ok(relay)
    }

    /// Holds back what clients send from now on; what the server sends passes.
    pub fn hold(&self) {
        *self
            .shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// How many connections have something of an established session of TLS that waits: clients
    /// wait for an answer to each request, so these are requests, also of clients that have gone.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many connections wait for their session of TLS to begin: what they are for has not been
    /// sent.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.shared.handshakes.load(Ordering::SeqCst)
    }

    /// Delivers what was held back, also of clients that have gone.
    pub fn release(&self) {
        *self
            .shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = false;
        self.shared.released.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.release();
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, shared: &Arc<Shared>) {
    while !shared.ended.load(Ordering::SeqCst) {
        match listener.accept() {
            // A client whose connection can't be passed on loses it, as it would lose the server's.
            Ok((client, _)) => drop(pass_on(client, to, shared)),
            Err(_) => thread::sleep(GLANCE),
        }
    }
}

fn pass_on(client: TcpStream, to: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect(to)?;
    let (from_client, to_server, shared) =
        (client.try_clone()?, server.try_clone()?, Arc::clone(shared));
    thread::Builder::new()
        .name("relay-out".into())
        .spawn(move || {
            // When the client goes, the server's end stays open: what was sent before still counts.
            copy(from_client, to_server, |data| shared.wait(data))
        })?;
    thread::Builder::new()
        .name("relay-in".into())
        .spawn(move || {
            let copied = copy(&server, &client, |_| {});
            drop(client.shutdown(std::net::Shutdown::Both));
            copied
        })?;
    Ok(())
}

impl Shared {
    fn wait(&self, data: &[u8]) {
        let waiting = if data.first() == Some(&HANDSHAKE) {
            &self.handshakes
        } else {
            &self.requests
        };
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.fetch_add(1, Ordering::SeqCst);
        let held = self
            .released
            .wait_while(held, |held| *held)
            .unwrap_or_else(PoisonError::into_inner);
        waiting.fetch_sub(1, Ordering::SeqCst);
        drop(held);
    }
}

/// Passes on what comes, each piece after `before` has seen it.
fn copy(mut from: impl Read, mut to: impl Write, before: impl Fn(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        before(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}
