//! Chains that lead from a number in the packet mark to the rule for it, in as many steps as the
//! number has hexadecimal digits.

use std::collections::BTreeMap;

use crate::mark_layout::MarkLayout;

/// Chains of one table: the rules of each, as `iptables-save` prints them.
pub(crate) type Chains = BTreeMap<String, Vec<String>>;

/// Where the tree begins and how numbers look in the mark.
pub(crate) struct Tree<'a> {
    /// The first chain; the others are named after it.
    pub(crate) root: &'a str,
    /// Bits of a number: a multiple of 4.
    pub(crate) width: u32,
    /// A number's bits in the packet mark.
    pub(crate) place: &'a dyn Fn(u16) -> u32,
    /// What a number meets that no leaf is for; nothing: back to the caller.
    pub(crate) otherwise: Option<&'a str>,
}

impl Tree<'_> {
    /// Adds the tree's chains; `leaves` are numbers with what to do ("-g CHAIN").
    pub(crate) fn grow(&self, chains: &mut Chains, leaves: &BTreeMap<u16, String>) {
        self.level(chains, self.root.to_owned(), self.width, leaves);
    }

    /// The chain that looks at the digit below `shift`.
    fn level(&self, chains: &mut Chains, name: String, shift: u32, leaves: &BTreeMap<u16, String>) {
        let shift = shift - 4;
        let mut groups: BTreeMap<u16, BTreeMap<u16, String>> = BTreeMap::new();
        for (number, leaf) in leaves {
            groups
                .entry(number >> shift)
                .or_default()
                .insert(*number, leaf.clone());
        }
        let mut rules = Vec::new();
        for (prefix, group) in groups {
            match group.first_key_value() {
                Some((number, leaf)) if group.len() == 1 => {
                    rules.push(format!(
                        "-m mark --mark {:#x}/{:#x} {leaf}",
                        (self.place)(*number),
                        (self.place)(self.ones(0))
                    ));
                }
                _ => {
                    let child = format!(
                        "{}-{prefix:0width$x}",
                        self.root,
                        width = ((self.width - shift) / 4) as usize
                    );
                    let (value, mask) = (
                        (self.place)(prefix << shift),
                        (self.place)(self.ones(shift)),
                    );
                    rules.push(format!("-m mark --mark {value:#x}/{mask:#x} -g {child}"));
                    self.level(chains, child, shift, &group);
                }
            }
        }
        rules.extend(self.otherwise.map(str::to_owned));
        chains.insert(name, rules);
    }

    /// All bits of a number down to `shift`.
    fn ones(&self, shift: u32) -> u16 {
        let all = u16::MAX >> (16 - self.width);
        all >> shift << shift
    }
}

/// The leaves of a tree of sixteen-bit numbers, whoever wrote it: each number with what to do.
pub(crate) fn leaves(chains: &Chains, root: &str, layout: MarkLayout) -> BTreeMap<u16, String> {
    let whole = format!("/{:#x}", layout.scratch());
    let leaf = |rule: &String| {
        let (mark, leaf) = rule.strip_prefix("-m mark --mark 0x")?.split_once(' ')?;
        let value = u32::from_str_radix(mark.strip_suffix(&whole)?, 16).ok()?;
        Some((layout.number_in(value), leaf.to_owned()))
    };
    chains
        .iter()
        .filter(|(name, _)| is_part(name, root))
        .flat_map(|(_, rules)| rules.iter().filter_map(leaf))
        .collect()
}

/// Whether a chain is one of a tree's.
pub(crate) fn is_part(name: &str, root: &str) -> bool {
    name.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The chain that a leaf leads to.
pub(crate) fn goal(leaf: &str) -> Option<&str> {
    leaf.strip_prefix("-g ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn grown(leaves: &[u16]) -> Chains {
        let mut chains = Chains::new();
        let leaves = leaves
            .iter()
            .map(|number| (*number, format!("-g L{number:x}")))
            .collect();
        let tree = Tree {
            root: "T",
            width: 16,
            place: &|number| u32::from(number) << 8,
            otherwise: Some("-j DROP"),
        };
        tree.grow(&mut chains, &leaves);
        chains
    }

    #[test]
    fn a_lonely_number_is_compared_whole_and_company_digit_by_digit() {
        let chains = grown(&[0x1234, 0x1235, 0x9000]);
        assert_eq!(
            chains["T"],
            [
                "-m mark --mark 0x100000/0xf00000 -g T-1",
                "-m mark --mark 0x900000/0xffff00 -g L9000",
                "-j DROP"
            ]
        );
        assert_eq!(
            chains["T-12"],
            ["-m mark --mark 0x123000/0xfff000 -g T-123", "-j DROP"]
        );
        assert_eq!(
            chains["T-123"][0],
            "-m mark --mark 0x123400/0xffff00 -g L1234"
        );
    }

    #[test]
    fn leaves_are_read_back() {
        let layout = MarkLayout::new(egressgateway::model::MarkMask::default());
        let leaves: BTreeMap<u16, String> = [1, 2, 0x12, 0x1234, 0xffff]
            .map(|number| (number, format!("-g L{number:x}")))
            .into();
        let mut chains = Chains::new();
        Tree {
            root: "T",
            width: 16,
            place: &|number| layout.number(number),
            otherwise: Some("-j DROP"),
        }
        .grow(&mut chains, &leaves);
        chains.insert(
            "TX".into(),
            vec!["-m mark --mark 0x7/0xffff -g OTHER".into()],
        );
        assert_eq!(super::leaves(&chains, "T", layout), leaves);
    }

    #[test]
    fn no_chain_is_longer_than_sixteen_however_many_numbers_there_are() {
        let all: Vec<u16> = (0..20_000).map(|number| number * 3).collect();
        assert!(grown(&all).values().all(|rules| rules.len() <= 17));
    }
}
