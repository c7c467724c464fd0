//! Policy rules: which packets are routed by which table.

use std::fmt;

use egressgateway::{
    Error,
    model::{Family, MarkMask},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::{
    family::{address_family, family_of},
    netlink::Netlink,
};

/// The name of the device that locally generated packets come from in a rule's eyes.
const LOOPBACK: &str = "lo";

/// A rule that chooses a table by packet mark.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Of which packets.
    pub family: Family,
    /// Place among the rules; lower comes first.
    pub priority: u32,
    /// The mark, under [`Self::mask`].
    pub mark: u32,
    /// The bits of the mark that are compared.
    pub mask: u32,
    /// Only what this host sends itself, such as the outer packets of a tunnel (`iif lo`).
    pub local: bool,
    /// Only what arrives by this device.
    pub by: Option<String>,
    /// The table.
    pub table: u32,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fwmark {:#x}/{:#x}", self.mark, self.mask)?;
        if self.local {
            write!(f, " iif {LOOPBACK}")?;
        }
        if let Some(device) = &self.by {
            write!(f, " iif {device}")?;
        }
        write!(f, " lookup {} pref {}", self.table, self.priority)
    }
}

impl Netlink {
    /// The mark rules with this protocol number and mask at one of these priorities, of a family.
    ///
    /// # Errors
    /// When the kernel can't be read.
    pub async fn rules(
        &self,
        family: Family,
        protocol: u8,
        mask: MarkMask,
        priorities: &[u32],
    ) -> Result<Vec<Rule>, Error> {
        let mut request = RuleMessage::default();
        request.header.family = address_family(family);
        let replies = self
            .dump(
                RouteNetlinkMessage::GetRule(request),
                &format!("list {family} rules"),
            )
            .await?;
        let rules = replies.into_iter().filter_map(|reply| match reply {
            RouteNetlinkMessage::NewRule(message) if protocol_of(&message) == protocol => {
                parse(&message)
            }
            _ => None,
        });
        Ok(rules
            .filter(|rule| {
                rule.family == family
                    && rule.mask == mask.bits()
                    && priorities.contains(&rule.priority)
            })
            .collect())
    }

    /// Adds a rule, tagged with a protocol number.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is one like it.
    pub async fn add_rule(&self, rule: &Rule, protocol: u8) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewRule(message(rule, protocol));
        self.write(
            message,
            NLM_F_CREATE | NLM_F_EXCL,
            &format!("add {} rule {rule}", rule.family),
        )
        .await
    }

    /// Deletes a rule that is tagged with this protocol number.
    ///
    /// # Errors
    /// [`Conflict`](egressgateway::ErrorKind::Conflict) when there is none.
    pub async fn delete_rule(&self, rule: &Rule, protocol: u8) -> Result<(), Error> {
        self.write(
            RouteNetlinkMessage::DelRule(message(rule, protocol)),
            0,
            &format!("delete {} rule {rule}", rule.family),
        )
        .await
    }
}

fn message(rule: &Rule, protocol: u8) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(rule.mask),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(protocol)),
    ];
    if rule.local {
        message
            .attributes
            .push(RuleAttribute::Iifname(LOOPBACK.to_owned()));
    }
    if let Some(device) = &rule.by {
        message
            .attributes
            .push(RuleAttribute::Iifname(device.clone()));
    }
    message
}

fn protocol_of(message: &RuleMessage) -> u8 {
    let tag = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
            _ => None,
        });
    tag.unwrap_or_default()
}

/// None for a rule that selects by more than a mark, or does something else than look into a table:
/// it is not ours.
pub(crate) fn parse(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable
        || (header.src_len, header.dst_len, header.tos) != (0, 0, 0)
    {
        return None;
    }
    let mut rule = Rule {
        family: family_of(header.family)?,
        priority: 0,
        mark: 0,
        mask: 0,
        local: false,
        by: None,
        table: u32::from(header.table),
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Iifname(name) if name == LOOPBACK => rule.local = true,
            RuleAttribute::Iifname(name) => rule.by = Some(name.clone()),
            RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => return None,
            _ => {}
        }
    }
    Some(rule)
}
