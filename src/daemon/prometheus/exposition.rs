//! Prometheus's text format, version 0.0.4: families of samples, each under its help and its type.

use std::fmt::{Display, Write};

/// What a family's numbers are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down; also 1 for a text that stands in the labels (`_info`).
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// A page being written.
#[derive(Default, Debug)]
pub(super) struct Exposition {
    text: String,
}

/// A family being written. Without samples it does not show.
#[derive(Debug)]
pub(super) struct Family<'e> {
    text: &'e mut String,
    kind: Kind,
    name: &'static str,
    help: &'static str,
    started: bool,
}

impl Exposition {
    pub(super) fn family(&mut self, kind: Kind, name: &'static str, help: &'static str) -> Family<'_> {
        Family { text: &mut self.text, kind, name, help, started: false }
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(Kind::Counter, name, help)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(Kind::Gauge, name, help)
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// A number under these labels, which no other sample of the family has. An empty label is as good as none.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.suffixed("", labels, value);
    }

    /// The same under the family's name with a suffix, as histograms have them.
    pub(super) fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let Self { kind, name, help, .. } = *self;
        if !std::mem::replace(&mut self.started, true) {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Writing to a string does not fail, here and below.
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        let _ = write!(self.text, "{name}{suffix}");
        let mut opening = '{';
        for (label, text) in labels.iter().filter(|(_, text)| !text.is_empty()) {
            let _ = write!(self.text, "{opening}{label}=\"{}\"", escaped(text));
            opening = ',';
        }
        if opening == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_type_and_samples() {
        let mut exposition = Exposition::default();
        exposition.gauge("unused", "Not to be seen.");
        let mut family = exposition.counter("a_total", "All of a.");
        family.sample(&[], 1_u64);
        family.sample(&[("b", "x\"\\\ny"), ("c", ""), ("d", "z")], 0.5);
        let expected = "# HELP a_total All of a.\n# TYPE a_total counter\na_total 1\n\
                        a_total{b=\"x\\\"\\\\\\ny\",d=\"z\"} 0.5\n";
        assert_eq!(exposition.into_text(), expected);
    }
}
