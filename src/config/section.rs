//! Reads the keys of one table, notes what is wrong, and at the end which keys nobody asked for.
//!
//! Owns: [`Section`] and the [`Report`] all sections write into, hints for unknown keys included. Does not own: which
//! keys there are (see `check`).
//!
//! The one idea a newcomer lacks: reading never stops. A wrong value is reported and read as absent, so that its
//! default lets the rest be checked; [`Report::into_result`] then refuses the whole.

use super::problem::{Hint, Place, Problem, Problems, Setting, shown};
use super::raw::{Node, Raw, Table, Value};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// What a value becomes, or the text that follows "must be".
pub(super) type Converted<T> = Result<T, String>;

/// Longer unknown keys get no suggestion: the search is quadratic in their length.
const SUGGESTION_KEY_MAX: usize = 64;

/// Everything found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: Vec<Problem>,
    unknown: Vec<(String, Setting)>,
    /// Every key anybody asked for, as (table's prefix, key).
    known: BTreeSet<(String, &'static str)>,
}

impl Report {
    pub(super) fn add(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub(super) fn invalid(&mut self, setting: Setting, allowed: impl Into<String>) {
        self.add(Problem::Invalid { setting, allowed: allowed.into() });
    }

    /// The configuration if nothing was wrong, else the problems in the order of their places.
    pub(super) fn into_result<T>(mut self, config: T) -> Result<T, Problems> {
        for (prefix, setting) in std::mem::take(&mut self.unknown) {
            let hint = self.hint(&prefix, &setting.key);
            self.add(Problem::UnknownKey { setting, hint });
        }
        self.problems.sort_by(|left, right| left.place().cmp(&right.place()));
        if self.problems.is_empty() { Ok(config) } else { Err(Problems(self.problems)) }
    }

    /// The known key most like this one. Its own table wins a tie, but any table is searched: a top-level key
    /// written below a `[table]` header belongs to that table, and that is a common mistake.
    fn hint(&self, prefix: &str, path: &str) -> Hint {
        let key = path.strip_prefix(prefix).unwrap_or(path).to_ascii_lowercase();
        let near = |(known_prefix, known): &&(String, &'static str)| {
            // Letters that changed places are likelier than others: "prot" is two edits from "port" and from "pool".
            (edit_distance(&key, known), sorted(&key) != sorted(known), known_prefix != prefix)
        };
        let nearest = self.known.iter().min_by_key(near).filter(|_| key.len() <= SUGGESTION_KEY_MAX);
        match nearest {
            // A quarter of the letters and one more: "brust" is two edits from "burst".
            Some(known) if edit_distance(&key, known.1) <= 1 + key.len() / 4 => {
                Hint::Nearest(format!("{}{}", known.0, known.1))
            }
            _ => {
                let siblings = self.known.iter().filter(|(known_prefix, _)| known_prefix == prefix);
                Hint::AnyOf(siblings.map(|(_, known)| (*known).to_owned()).collect())
            }
        }
    }
}

fn sorted(key: &str) -> Vec<u8> {
    let mut letters = key.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// Levenshtein's distance: how many bytes to insert, delete or replace.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, left_byte) in left.bytes().take(SUGGESTION_KEY_MAX).enumerate() {
        let mut diagonal = index;
        let mut before = index + 1;
        row[0] = before;
        for (right_byte, cell) in right.bytes().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(left_byte != right_byte);
            diagonal = *cell;
            before = replaced.min(before + 1).min(diagonal + 1);
            *cell = before;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// One table being read. Call [`Section::finish`] when all its keys have been.
pub(super) struct Section<'r> {
    /// Where its header is; `None` for the top level and for a table that is not there.
    pub(super) place: Option<Place>,
    /// `rate-limit.`, or empty at the top level.
    prefix: String,
    entries: Table,
    pub(super) report: &'r mut Report,
}

impl<'r> Section<'r> {
    pub(super) fn top(raw: Raw, report: &'r mut Report) -> Self {
        Self { place: None, prefix: String::new(), entries: raw.root, report }
    }

    fn path(&self, key: &str) -> String {
        shown(&format!("{}{key}", self.prefix))
    }

    /// What stands for the key, if anything.
    pub(super) fn setting(&self, key: &str) -> Option<Setting> {
        self.entries.get(key).map(|node| self.setting_of(key, node))
    }

    /// What stands for a key that is left to its default: the table.
    pub(super) fn absent(&self, key: &str, default: &str) -> Option<Setting> {
        self.place.as_ref().map(|place| self.setting_at(key, place, default))
    }

    fn setting_of(&self, key: &str, node: &Node) -> Setting {
        self.setting_at(key, &node.place, &node.shown)
    }

    fn setting_at(&self, key: &str, place: &Place, shown: &str) -> Setting {
        Setting { place: place.clone(), key: self.path(key), value: shown.to_owned() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The table lacks a key that it must have.
    pub(super) fn report_missing(&mut self, key: &str, allowed: &str) {
        if let Some(place) = self.place.clone() {
            let key = self.path(key);
            self.report.add(Problem::Missing { place, key, allowed: allowed.to_owned() });
        }
    }

    /// Is the key there, right or wrong?
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.report.known.insert((self.prefix.clone(), key));
        self.entries.remove(key)
    }

    /// The key's value through `convert`; `None` if it is absent or wrong (then reported).
    pub(super) fn value<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(Value) -> Converted<T>,
    ) -> Option<T> {
        let Node { place, shown, value } = self.take(key)?;
        match convert(value) {
            Ok(value) => Some(value),
            Err(allowed) => {
                let setting = self.setting_at(key, &place, &shown);
                self.report.invalid(setting, allowed);
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.value(key, |value| match value {
            Value::Boolean(boolean) => Ok(boolean),
            _ => Err("true or false".to_owned()),
        })
    }

    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<T> {
        self.value(key, |value| integer(&value, &range))
    }

    /// A power of two within the range.
    pub(super) fn power_of_two(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        self.value(key, |value| {
            integer(&value, &wide)
                .ok()
                .filter(|count: &u32| count.is_power_of_two())
                .ok_or_else(|| format!("a power of two from {} to {}", range.start(), range.end()))
        })
    }

    /// One of the names of an enum.
    pub(super) fn choice<T: ValueEnum>(&mut self, key: &'static str) -> Option<T> {
        self.value(key, |value| match value {
            Value::Text(text) => T::from_str(&text, false).map_err(|_| choices::<T>()),
            _ => Err(choices::<T>()),
        })
    }

    /// A list, each item through `convert` and with its own place; empty if it is absent or wrong (then reported).
    /// `allowed` is what to say if it is no list.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        convert: impl Fn(Value) -> Converted<T>,
    ) -> Vec<(T, Setting)> {
        let items = self.value(key, |value| match value {
            Value::Array(items) => Ok(items),
            _ => Err(allowed.to_owned()),
        });
        let mut converted = Vec::new();
        for Node { place, shown, value } in items.unwrap_or_default() {
            let setting = self.setting_at(key, &place, &shown);
            match convert(value) {
                Ok(value) => converted.push((value, setting)),
                Err(allowed) => self.report.invalid(setting, allowed),
            }
        }
        converted
    }

    /// A list that names nothing twice.
    pub(super) fn set<T: Ord + Copy>(
        &mut self,
        key: &'static str,
        allowed: &str,
        convert: impl Fn(Value) -> Converted<T>,
    ) -> Vec<T> {
        let items = self.list(key, allowed, convert);
        self.report_repeats(items.iter().map(|(value, setting)| (*value, setting)));
        items.into_iter().map(|(value, _)| value).collect()
    }

    /// Reports every value that an earlier one equals.
    pub(super) fn report_repeats<'s, T: Ord>(&mut self, items: impl Iterator<Item = (T, &'s Setting)>) {
        let mut seen: BTreeMap<T, &Setting> = BTreeMap::new();
        for (value, setting) in items {
            if let Some(first) = seen.get(&value) {
                self.report.add(Problem::Repeated {
                    setting: setting.clone(),
                    first: first.place.clone(),
                    first_key: first.key.clone(),
                });
            } else {
                seen.insert(value, setting);
            }
        }
    }

    /// A table below this one; empty if it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_> {
        let place = self.entries.get(key).map(|node| node.place.clone());
        let entries = self.value(key, |value| match value {
            Value::Table(table) => Ok(table),
            _ => Err(format!("a table: [{key}]")),
        });
        let prefix = format!("{}{key}.", self.prefix);
        Section { place, prefix, entries: entries.unwrap_or_default(), report: self.report }
    }

    /// Calls `read` for each table of an array of tables.
    pub(super) fn sections<T>(&mut self, key: &'static str, read: impl Fn(Section<'_>) -> T) -> Vec<T> {
        let allowed = format!("a table for each, with double brackets: [[{key}]]");
        let tables = self.list(key, &allowed, |value| match value {
            Value::Table(table) => Ok(table),
            _ => Err(allowed.clone()),
        });
        let prefix = format!("{}{key}.", self.prefix);
        let report = &mut *self.report;
        let read_one = |(entries, setting): (Table, Setting)| {
            read(Section {
                place: Some(setting.place),
                prefix: prefix.clone(),
                entries,
                report: &mut *report,
            })
        };
        tables.into_iter().map(read_one).collect()
    }

    /// Whatever nobody asked for is unknown.
    pub(super) fn finish(self) {
        for (key, node) in &self.entries {
            let setting = self.setting_of(key, node);
            self.report.unknown.push((self.prefix.clone(), setting));
        }
    }
}

/// An integer within a range.
pub(super) fn integer<T: TryFrom<i64>>(value: &Value, range: &RangeInclusive<i64>) -> Converted<T> {
    let in_range = match value {
        Value::Integer(integer) if range.contains(integer) => T::try_from(*integer).ok(),
        _ => None,
    };
    in_range.ok_or_else(|| format!("{} to {}", range.start(), range.end()))
}

/// `"auto", "af-xdp" or "socket"`.
pub(super) fn choices<T: ValueEnum>() -> String {
    let variants = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = variants.map(|value| format!("{:?}", value.get_name())).collect();
    match names.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("burst", "burst"), 0);
        assert_eq!(edit_distance("brust", "burst"), 2);
        assert_eq!(edit_distance("", "burst"), 5);
        assert_eq!(edit_distance("ipv4_prefix", "ipv4-prefix"), 1);
    }
}
