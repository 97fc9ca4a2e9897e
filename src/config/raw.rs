//! TOML text to a tree in which every value knows where it was written.
//!
//! Owns: [`Raw`]. Does not own: what the keys mean.
//!
//! The one idea a newcomer lacks: this is no `#[derive(Deserialize)]` struct. Such a one stops at the first unknown
//! key, and its type errors ("expected u16") name neither the key nor the allowed range. With the tree in hand
//! `check` reports everything at once, in our words, and command line flags become values like any other.

use super::problem::{Place, Problem, Problems, shown};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// The entries of one table.
pub(super) type Table = BTreeMap<String, Node>;

/// One value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Of its key, or of itself within an array.
    pub(super) place: Place,
    /// The user's spelling, fit for a message.
    pub(super) shown: String,
    /// What it is.
    pub(super) value: Value,
}

/// A TOML value as far as our keys use them.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Table),
    /// Floats, dates and integers beyond 64 bits: no key takes them.
    Other,
}

/// A whole configuration, not yet checked.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) root: Table,
}

impl Raw {
    /// Reads TOML text; `path` is for the messages. Reports every syntax error the parser can recover from.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        let source = Source::new(path, text);
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self { root: source.table(table.get_ref()) });
        }
        Err(Problems(errors.iter().map(|error| source.syntax_problem(error)).collect()))
    }
}

/// The text being read, with an index of its lines.
struct Source<'a> {
    path: Arc<Path>,
    text: &'a str,
    /// Offsets of the first byte of each line.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(path: &Path, text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self { path: path.into(), text, lines: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Counted from 1: the first line starts at 0, so that no offset lies before it.
    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|&start| start <= offset)
    }

    fn place(&self, offset: usize) -> Place {
        Place::Line { path: Arc::clone(&self.path), line: self.line(offset) }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entries = table.iter();
        entries.map(|(key, value)| (key.get_ref().to_string(), self.node(key.span().start, value))).collect()
    }

    fn node(&self, offset: usize, value: &toml::Spanned<DeValue<'_>>) -> Node {
        let converted = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Value::Other, Value::Integer)
            }
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.node(item.span().start, item)).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table)),
            DeValue::Float(_) | DeValue::Datetime(_) => Value::Other,
        };
        // The span of a table is its header's: not what the user would call its value.
        let shown = match converted {
            Value::Table(_) => "{...}".to_owned(),
            _ => shown(self.text.get(value.span()).unwrap_or_default()),
        };
        Node { place: self.place(offset), shown, value: converted }
    }

    fn syntax_problem(&self, error: &toml::de::Error) -> Problem {
        let offset = error.span().map_or(0, |span| span.start).min(self.text.len());
        let line = self.line(offset);
        let start = self.lines.get(line - 1).copied().unwrap_or_default();
        let text = match shown(self.text[start..].lines().next().unwrap_or_default()) {
            empty if empty.is_empty() => "end of file".to_owned(),
            text => text,
        };
        let place = Place::Line { path: Arc::clone(&self.path), line };
        Problem::Syntax { place, text, message: shown(error.message()) }
    }
}
