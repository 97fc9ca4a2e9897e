//! Who may ask: an access list of prefixes, the most specific of which decides.
//!
//! Owns: the rules, the lookup, and the extract of them that the XDP program enforces. Does not own: what a
//! refusal looks like on the wire, nor the reading of the configuration.
//!
//! The one idea a newcomer lacks: prefixes never half overlap, they nest. So the whole nest can be flattened
//! when the list is built, into ranges that cover every address once, and a lookup is one binary search for
//! the range an address falls in, however deep the nest was.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// What is done with a client's requests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Action {
    /// Answered.
    #[default]
    Allow,
    /// Refused, with a Kiss-o'-Death `DENY` where those are on.
    Deny,
    /// Refused by local policy, with a Kiss-o'-Death `RSTR` where those are on.
    Restrict,
    /// Dropped without a word.
    Drop,
}

impl Action {
    /// Does a client with this action never hear from us? Then the XDP program may drop its requests.
    const fn is_silent(self, kod: bool) -> bool {
        match self {
            Self::Allow => false,
            Self::Deny | Self::Restrict => !kod,
            Self::Drop => true,
        }
    }
}

/// Why an access list cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AccessError {
    /// Two rules for one prefix disagree.
    #[error("{prefix} is given twice, as {first:?} and as {second:?}")]
    Contradiction {
        /// The prefix, host bits cleared; IPv4 if it was given as v4-mapped.
        prefix: IpNet,
        /// What the earlier rule says.
        first: Action,
        /// What the later rule says.
        second: Action,
    },
}

/// An access list, ready for lookups.
#[derive(Clone, Debug)]
pub struct AccessList {
    ipv4: SearchTree<u32, Action>,
    ipv6: Ipv6Tree,
    /// Sorted, so that a prefix comes right before those inside it; /0 of both families is always there.
    rules: Vec<(IpNet, Action)>,
}

impl AccessList {
    /// A list with these rules, in any order, and an action for the addresses that none of them holds.
    ///
    /// Host bits are ignored. A rule inside `::ffff:0:0/96` is a rule for the IPv4 addresses mapped there; a
    /// shorter IPv6 prefix, such as `::/0`, says nothing about them.
    ///
    /// # Errors
    /// [`AccessError::Contradiction`] if one prefix is given two different actions. Twice the same is fine.
    pub fn new(
        default: Action,
        rules: impl IntoIterator<Item = (IpNet, Action)>,
    ) -> Result<Self, AccessError> {
        let mut sorted = BTreeMap::new();
        for (prefix, action) in rules {
            let prefix = canonical(prefix);
            match sorted.entry(prefix) {
                Entry::Vacant(place) => {
                    place.insert(action);
                }
                Entry::Occupied(place) if *place.get() != action => {
                    return Err(AccessError::Contradiction { prefix, first: *place.get(), second: action });
                }
                Entry::Occupied(_) => {}
            }
        }
        // The default is the rule for the prefix that holds everything, unless there is one.
        for everything in [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())] {
            sorted.entry(everything).or_insert(default);
        }
        let ipv4 = sorted.iter().filter_map(|(prefix, action)| match prefix {
            IpNet::V4(net) => Some((net.network().to_bits(), net.broadcast().to_bits(), *action)),
            IpNet::V6(_) => None,
        });
        let ipv6 = sorted.iter().filter_map(|(prefix, action)| match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((net.network().to_bits(), net.broadcast().to_bits(), *action)),
        });
        Ok(Self {
            ipv4: SearchTree::new(Ranges::flatten(ipv4, |last| last.checked_add(1)).0),
            ipv6: Ipv6Tree::new(&Ranges::flatten(ipv6, |last| last.checked_add(1)).0),
            rules: sorted.into_iter().collect(),
        })
    }

    /// What the most specific prefix that holds this address says. v4-mapped addresses follow the IPv4 rules.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Action {
        match address {
            IpAddr::V4(address) => self.ipv4.lookup(address.to_bits()),
            IpAddr::V6(address) => match mapped_bits(address) {
                Some(bits) => self.ipv4.lookup(bits),
                None => self.ipv6.lookup(address.to_bits()),
            },
        }
    }

    /// What the XDP program's longest-prefix map must hold: prefixes, each with whether it is dropped (`true`)
    /// or served (`false`), where an address in none of them is served. Only clients that we never answer at
    /// all are dropped there; with `kod` on, those to be denied or restricted must reach us to be told so.
    ///
    /// An entry that says what its enclosing entry says already is left out. IPv6 packets *from* v4-mapped
    /// addresses are not regarded: nobody can honestly send them, and we answer none.
    #[must_use]
    pub fn silently_dropped_prefixes(&self, kod: bool) -> Vec<(IpNet, bool)> {
        let mut entries = Vec::new();
        let mut enclosing: Vec<(IpNet, bool)> = Vec::new();
        for &(prefix, action) in &self.rules {
            while enclosing.last().is_some_and(|(outer, _)| !outer.contains(&prefix)) {
                enclosing.pop();
            }
            let dropped = action.is_silent(kod);
            if dropped != enclosing.last().is_some_and(|(_, dropped)| *dropped) {
                entries.push((prefix, dropped));
            }
            enclosing.push((prefix, dropped));
        }
        entries
    }
}

/// Host bits cleared, and IPv4 where it is v4-mapped.
fn canonical(prefix: IpNet) -> IpNet {
    match prefix.trunc() {
        IpNet::V6(net) if net.prefix_len() >= 96 => match mapped_bits(net.network()) {
            // The length is 96 to 128, so what is left of it is an IPv4 length.
            Some(bits) => Ipv4Net::new(Ipv4Addr::from_bits(bits), net.prefix_len() - 96)
                .map_or(IpNet::V6(net), IpNet::V4),
            None => IpNet::V6(net),
        },
        prefix => prefix,
    }
}

/// The IPv4 address inside a v4-mapped one (RFC 4291 section 2.5.5.2).
const fn mapped_bits(address: Ipv6Addr) -> Option<u32> {
    let bits = address.to_bits();
    if bits >> 32 == 0xffff { Some(bits as u32) } else { None }
}

/// Every address of one family in sorted ranges, each from its first address up to the next one's.
struct Ranges<Bits>(Vec<(Bits, Action)>);

impl<Bits: Copy + Ord> Ranges<Bits> {
    /// From prefixes as (first, last, action), sorted so that an outer one comes before those inside it, and
    /// the first of which holds everything. `after` is the address after one, if there is any.
    fn flatten(
        prefixes: impl Iterator<Item = (Bits, Bits, Action)>,
        after: impl Fn(Bits) -> Option<Bits>,
    ) -> Self {
        let mut ranges = Self(Vec::new());
        // The prefixes that hold the point we are at, outermost first.
        let mut open: Vec<(Bits, Action)> = Vec::new();
        for (first, last, action) in prefixes {
            ranges.close(&mut open, &after, |open_last| open_last < first);
            ranges.begin(first, action);
            open.push((last, action));
        }
        ranges.close(&mut open, &after, |_| true);
        ranges
    }

    /// Ends the innermost open prefixes as long as `ended` says so; behind each, the one around it goes on.
    fn close(
        &mut self,
        open: &mut Vec<(Bits, Action)>,
        after: impl Fn(Bits) -> Option<Bits>,
        ended: impl Fn(Bits) -> bool,
    ) {
        while let Some((last, _)) = open.pop_if(|(last, _)| ended(*last)) {
            if let (Some(next), Some(&(_, outer))) = (after(last), open.last()) {
                self.begin(next, outer);
            }
        }
    }

    /// From `first` on it is `action`; overrides what was said of the same address before, since prefixes that
    /// begin or end at one address come outer first when they begin and inner first when they end.
    fn begin(&mut self, first: Bits, action: Action) {
        self.0.pop_if(|(begun, _)| *begun == first);
        if self.0.last().is_none_or(|(_, before)| *before != action) {
            self.0.push((first, action));
        }
    }
}

/// Sorted ranges as a binary tree without pointers (Eytzinger's order): the root is at 1, the children of `i`
/// at `2 i` and `2 i + 1`. A step of a search is a comparison whose outcome is the next bit of the way, and
/// leaving the tree is the only branch; that takes two thirds of the instructions of a search in a sorted list.
#[derive(Clone, Debug)]
struct SearchTree<Bits, Value> {
    /// The first address of each range.
    first: Box<[Bits]>,
    values: Box<[Value]>,
}

impl<Bits: Copy + Ord, Value: Copy> SearchTree<Bits, Value> {
    /// Of ranges that begin at the lowest address and cover all.
    fn new(ranges: Vec<(Bits, Value)>) -> Self {
        // Place 0 is never looked at; what is there does not matter.
        let mut tree: Vec<_> = ranges.first().into_iter().chain(&ranges).copied().collect();
        fill(&mut tree, 1, &mut ranges.into_iter());
        let (first, values): (Vec<_>, Vec<_>) = tree.into_iter().unzip();
        Self { first: first.into(), values: values.into() }
    }

    fn lookup(&self, address: Bits) -> Value {
        let mut node = 1;
        while let Some(first) = self.first.get(node) {
            node = 2 * node + usize::from(*first <= address);
        }
        // The range is where the way last turned right: take back that turn and the left ones after it. There
        // was one, since the range that begins at the lowest address is on everyone's way or left of it.
        self.values[node >> (node.trailing_zeros() + 1)]
    }
}

/// A tree of the upper halves of IPv6 addresses, which decide about nearly all of them, and a further one for each
/// upper half that is divided. Halves are what a processor compares in one instruction.
#[derive(Clone, Debug)]
struct Ipv6Tree {
    upper: SearchTree<u64, Upper>,
    lower: Vec<SearchTree<u64, Action>>,
}

/// What an upper half decides.
#[derive(Clone, Copy, Debug)]
enum Upper {
    Action(Action),
    /// It is divided: the tree of its lower halves.
    Divided(usize),
}

impl Ipv6Tree {
    /// Of ranges that begin at the lowest address and cover all.
    fn new(ranges: &[(u128, Action)]) -> Self {
        let mut upper: Vec<(u64, Upper)> = Vec::new();
        let mut lower = Vec::new();
        let mut before = Action::default();
        for group in ranges.chunk_by(|one, other| one.0 >> 64 == other.0 >> 64) {
            let [(first, action), ..] = *group else { continue };
            let half = (first >> 64) as u64;
            // What was to go on after a divided half ends where this one begins.
            upper.pop_if(|(begun, _)| *begun == half);
            if group.len() == 1 && first as u64 == 0 {
                upper.push((half, Upper::Action(action)));
                before = action;
                continue;
            }
            let begins_later = (first as u64 != 0).then_some((0, before));
            let parts = group.iter().map(|(first, action)| (*first as u64, *action));
            upper.push((half, Upper::Divided(lower.len())));
            lower.push(SearchTree::new(begins_later.into_iter().chain(parts).collect()));
            before = group.last().map_or(before, |(_, action)| *action);
            upper.extend(half.checked_add(1).map(|next| (next, Upper::Action(before))));
        }
        Self { upper: SearchTree::new(upper), lower }
    }

    fn lookup(&self, address: u128) -> Action {
        match self.upper.lookup((address >> 64) as u64) {
            Upper::Action(action) => action,
            Upper::Divided(index) => self.lower[index].lookup(address as u64),
        }
    }
}

/// Puts the items, which are sorted, into the tree below `node`: left child, node, right child. As deep as the
/// tree is: the logarithm of its size.
fn fill<T>(tree: &mut [T], node: usize, sorted: &mut impl Iterator<Item = T>) {
    if node < tree.len() {
        fill(tree, 2 * node, sorted);
        if let Some(item) = sorted.next() {
            tree[node] = item;
        }
        fill(tree, 2 * node + 1, sorted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn list(default: Action, rules: &[(&str, Action)]) -> AccessList {
        AccessList::new(default, rules.iter().map(|(prefix, action)| (net(prefix), *action))).unwrap()
    }

    fn look(list: &AccessList, address: &str) -> Action {
        list.lookup(address.parse().unwrap())
    }

    #[test]
    fn the_most_specific_prefix_wins_in_any_order() {
        let mut rules = [
            ("10.0.0.0/8", Action::Deny),
            ("10.1.0.0/16", Action::Allow),
            ("10.1.2.0/24", Action::Restrict),
            ("10.1.2.3/32", Action::Drop),
            ("10.255.255.255/32", Action::Allow),
            ("2001:db8::/32", Action::Drop),
            ("2001:db8:0:1::/64", Action::Allow),
        ];
        for _ in 0..rules.len() {
            rules.rotate_left(1);
            let list = list(Action::Allow, &rules);
            let expected = [
                ("9.255.255.255", Action::Allow),
                ("10.0.0.0", Action::Deny),
                ("10.1.1.255", Action::Allow),
                ("10.1.2.2", Action::Restrict),
                ("10.1.2.3", Action::Drop),
                ("10.1.2.4", Action::Restrict),
                ("10.1.3.0", Action::Allow),
                ("10.255.255.254", Action::Deny),
                ("10.255.255.255", Action::Allow),
                ("11.0.0.0", Action::Allow),
                ("255.255.255.255", Action::Allow),
                ("2001:db8::1", Action::Drop),
                ("2001:db8:0:1:ffff::", Action::Allow),
                ("2001:db8:0:2::", Action::Drop),
                ("2001:db9::", Action::Allow),
            ];
            for (address, action) in expected {
                assert_eq!(look(&list, address), action, "{address} with {rules:?}");
            }
        }
    }

    #[test]
    fn mapped_addresses_follow_the_ipv4_rules_only() {
        let list = list(
            Action::Allow,
            &[
                ("::/0", Action::Deny),
                ("10.0.0.0/8", Action::Drop),
                ("::ffff:11.0.0.0/104", Action::Restrict),
            ],
        );
        assert_eq!(look(&list, "::ffff:10.1.2.3"), Action::Drop);
        assert_eq!(look(&list, "::ffff:11.1.2.3"), Action::Restrict);
        assert_eq!(look(&list, "11.1.2.3"), Action::Restrict, "a rule on the mapped form is an IPv4 rule");
        assert_eq!(look(&list, "::ffff:12.1.2.3"), Action::Allow, "::/0 does not reach mapped addresses");
        assert_eq!(look(&list, "::1:ffff:12.1.2.3"), Action::Deny);
    }

    #[test]
    fn one_prefix_with_two_actions_is_an_error_that_names_it() {
        let rules = [(net("10.1.2.3/8"), Action::Deny), (net("::ffff:10.0.0.0/104"), Action::Allow)];
        let error = AccessList::new(Action::Allow, rules).unwrap_err();
        assert_eq!(error.to_string(), "10.0.0.0/8 is given twice, as Deny and as Allow");
        assert!(AccessList::new(Action::Allow, [rules[0], rules[0]]).is_ok());
    }

    #[test]
    fn the_xdp_map_holds_what_is_never_answered_and_the_holes_in_it() {
        let rules = [
            ("10.0.0.0/8", Action::Deny),
            ("10.1.0.0/16", Action::Allow),
            ("10.1.1.0/24", Action::Allow),
            ("10.2.0.0/16", Action::Drop),
        ];
        let open = list(Action::Allow, &rules);
        let told = [(net("10.2.0.0/16"), true)];
        assert_eq!(open.silently_dropped_prefixes(true), told);
        let untold = [(net("10.0.0.0/8"), true), (net("10.1.0.0/16"), false)];
        assert_eq!(open.silently_dropped_prefixes(false), untold);
        let closed = list(Action::Deny, &[("10.0.0.0/8", Action::Allow)]);
        let all = [(net("0.0.0.0/0"), true), (net("10.0.0.0/8"), false), (net("::/0"), true)];
        assert_eq!(closed.silently_dropped_prefixes(false), all);
        assert_eq!(closed.silently_dropped_prefixes(true), []);
    }

    fn any_action() -> impl Strategy<Value = Action> {
        prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Restrict), Just(Action::Drop)]
    }

    /// Few distinct bits at both ends of the address, so that prefixes nest, touch and repeat.
    fn any_address() -> impl Strategy<Value = IpAddr> {
        let few = prop_oneof![Just(0_u32), Just(u32::MAX), Just(0x8000_0001), any::<u32>()];
        (few, any::<u32>(), 0..5_u8).prop_map(|(pattern, random, kind)| {
            let bits = pattern ^ (random & 0xc000_0003);
            match kind {
                0 | 1 => IpAddr::V4(bits.into()),
                2 => IpAddr::V6((0xffff_0000_0000 | u128::from(bits)).into()),
                3 => IpAddr::V6((u128::from(bits) << 96 | u128::from(bits)).into()),
                _ => IpAddr::V6(u128::from(bits).into()),
            }
        })
    }

    fn any_rules() -> impl Strategy<Value = Vec<(IpNet, Action)>> {
        let rule = (any_address(), 0..=128_u8, any_action()).prop_map(|(address, length, action)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (IpNet::new(address, length % (longest + 1)).unwrap(), action)
        });
        prop::collection::vec(rule, 0..24)
    }

    /// The longest of the prefixes that hold the address, by looking at each of them.
    fn naive<T: Copy>(entries: &[(IpNet, T)], default: T, address: IpAddr) -> T {
        let address = address.to_canonical();
        let holding = entries.iter().filter(|(prefix, _)| prefix.contains(&address));
        holding.max_by_key(|(prefix, _)| prefix.prefix_len()).map_or(default, |(_, value)| *value)
    }

    /// A rule on mapped addresses as the IPv4 rule that it means.
    fn unmapped((prefix, action): (IpNet, Action)) -> (IpNet, Action) {
        match prefix.addr().to_canonical() {
            IpAddr::V4(address) if prefix.addr().is_ipv6() && prefix.prefix_len() >= 96 => {
                (IpNet::new(address.into(), prefix.prefix_len() - 96).unwrap(), action)
            }
            _ => (prefix, action),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_search(
            default in any_action(),
            mut rules in any_rules(),
            addresses in prop::collection::vec(any_address(), 16),
            kod in any::<bool>(),
        ) {
            let mut given = Vec::new();
            rules.retain(|rule| {
                let prefix = unmapped(*rule).0.trunc();
                !given.contains(&prefix) && { given.push(prefix); true }
            });
            let list = AccessList::new(default, rules.iter().copied()).unwrap();
            let oracle: Vec<_> = rules.iter().copied().map(unmapped).collect();
            let xdp = list.silently_dropped_prefixes(kod);
            let edges = rules.iter().flat_map(|(prefix, _)| [prefix.network(), prefix.broadcast()]);
            for address in addresses.into_iter().chain(edges) {
                let action = list.lookup(address);
                prop_assert_eq!(action, naive(&oracle, default, address), "{}", address);
                prop_assert_eq!(action.is_silent(kod), naive(&xdp, false, address), "{} in the map", address);
            }
        }
    }
}
