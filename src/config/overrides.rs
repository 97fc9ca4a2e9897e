//! Command line flags as configuration.
//!
//! Owns: which key each flag sets, and what it does to a file that says something else. Does not own: the ranges;
//! flags are merged in before the check, so they meet the same rules and their errors name the flag.

use super::model::Config;
use super::problem::{Place, shown};
use super::raw::{Node, Raw, Table, Value};

/// What the command line says. Nothing in it is checked yet.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Overrides {
    /// `--interface`: exactly these are served. One that the file has keeps its settings, the file's others are left
    /// out, new ones get the defaults. Empty: as the file says.
    pub interfaces: Vec<String>,
    /// `--local-stratum` or `--reference`. If the file names another source, its `[reference]` is replaced whole.
    pub reference: Option<ReferenceFlag>,
    /// `--datapath`.
    pub datapath: Option<String>,
    /// `--no-clock-control`.
    pub no_clock_control: bool,
    /// `--port`.
    pub port: Option<i64>,
    /// `--socket`.
    pub socket: Option<String>,
    /// `--metrics`.
    pub metrics: Option<String>,
    /// `--upstream`: servers besides the file's, name or address and port, asked with `iburst`.
    pub upstreams: Vec<(String, u16)>,
}

/// A flag that says where the time comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReferenceFlag {
    /// `--local-stratum N`: the machine's own clock at this stratum.
    LocalStratum(i64),
    /// `--reference system`: the kernel clock that another program keeps.
    System,
}

impl Overrides {
    pub(super) fn apply(&self, raw: &mut Raw) {
        let mut set = |key: &str, flag, value| raw.root.insert(key.to_owned(), node(flag, value));
        if let Some(datapath) = &self.datapath {
            set("datapath", "--datapath", Value::Text(datapath.clone()));
        }
        if self.no_clock_control {
            set("clock-control", "--no-clock-control", Value::Boolean(false));
        }
        if let Some(port) = self.port {
            set("port", "--port", Value::Integer(port));
        }
        if let Some(socket) = &self.socket {
            set("socket", "--socket", Value::Text(socket.clone()));
        }
        if let Some(reference) = self.reference {
            reference.apply(&mut raw.root);
        }
        self.add_interfaces(&mut raw.root);
        self.add_upstreams(&mut raw.root);
        self.set_metrics(&mut raw.root);
    }

    /// Leaves the table's other keys. If the file's `metrics` is no table, that is for the check to say.
    fn set_metrics(&self, root: &mut Table) {
        const FLAG: &str = "--metrics";
        let Some(listen) = &self.metrics else { return };
        let table =
            root.entry("metrics".to_owned()).or_insert_with(|| node(FLAG, Value::Table(Table::new())));
        if let Value::Table(entries) = &mut table.value {
            entries.insert("listen".to_owned(), node(FLAG, Value::Text(listen.clone())));
        }
    }

    /// Adds the interfaces that the file does not have. If the file's `interface` is no array, that is for the check
    /// to say.
    fn add_interfaces(&self, root: &mut Table) {
        const FLAG: &str = "--interface";
        if self.interfaces.is_empty() {
            return;
        }
        let interfaces =
            root.entry("interface".to_owned()).or_insert_with(|| node(FLAG, Value::Array(vec![])));
        let Value::Array(tables) = &mut interfaces.value else { return };
        for name in &self.interfaces {
            if !tables.iter().any(|table| text_of(table, "name") == Some(name)) {
                let name = node(FLAG, Value::Text(name.clone()));
                tables.push(node(FLAG, Value::Table(Table::from([("name".to_owned(), name)]))));
            }
        }
    }

    /// Whoever names a server by hand waits for it.
    fn add_upstreams(&self, root: &mut Table) {
        const FLAG: &str = "--upstream";
        if self.upstreams.is_empty() {
            return;
        }
        let servers = root.entry("server".to_owned()).or_insert_with(|| node(FLAG, Value::Array(vec![])));
        let Value::Array(tables) = &mut servers.value else { return };
        for (address, port) in &self.upstreams {
            let entries = [
                ("address", Value::Text(address.clone())),
                ("port", Value::Integer((*port).into())),
                ("iburst", Value::Boolean(true)),
            ];
            let entries = entries.map(|(key, value)| (key.to_owned(), node(FLAG, value)));
            tables.push(node(FLAG, Value::Table(Table::from(entries))));
        }
    }

    /// After the check, so that a mistake in a table left out is still reported.
    pub(super) fn leave_out_interfaces(&self, config: &mut Config) {
        if !self.interfaces.is_empty() {
            config.interfaces.retain(|interface| self.interfaces.contains(&interface.name));
        }
    }
}

impl ReferenceFlag {
    fn apply(self, root: &mut Table) {
        let (flag, source) = match self {
            Self::LocalStratum(_) => ("--local-stratum", "local"),
            Self::System => ("--reference", "system"),
        };
        let same_source =
            root.get("reference").filter(|table| text_of(table, "source") == Some(source)).is_some();
        if !same_source {
            let entries = Table::from([("source".to_owned(), node(flag, Value::Text(source.to_owned())))]);
            root.insert("reference".to_owned(), node(flag, Value::Table(entries)));
        }
        if let (Self::LocalStratum(stratum), Some(Value::Table(entries))) =
            (self, root.get_mut("reference").map(|table| &mut table.value))
        {
            entries.insert("stratum".to_owned(), node(flag, Value::Integer(stratum)));
        }
    }
}

/// The text of a key of a table, if it is both.
fn text_of<'n>(table: &'n Node, key: &str) -> Option<&'n str> {
    let Value::Table(entries) = &table.value else { return None };
    match &entries.get(key)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn node(flag: &'static str, value: Value) -> Node {
    let text = match &value {
        Value::Text(text) => shown(text),
        Value::Integer(integer) => integer.to_string(),
        Value::Boolean(_) | Value::Array(_) | Value::Table(_) | Value::Other => String::new(),
    };
    Node { place: Place::Flag(flag), shown: text, value }
}
