//! A strict reader of Prometheus's text format: stricter than Prometheus, which takes much that it should not be given.

use std::collections::{BTreeMap, BTreeSet};

/// One line of a page.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A page that was found to be right.
#[derive(Debug)]
pub struct Page {
    /// Each family's name and kind.
    pub families: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

impl Page {
    /// Reads a page, or says in which line what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut page = Self { families: BTreeMap::new(), samples: Vec::new() };
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        let mut family = None;
        let mut series = BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let wrong = |what: &str| Err(format!("{what}: {line}"));
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap_or((help, ""));
                let kind = lines.next().and_then(|next| next.strip_prefix(&format!("# TYPE {name} ")));
                let Some(kind) = kind else { return wrong("no TYPE after HELP") };
                if !help.ends_with(['.', ')']) && !help.ends_with("always 1") {
                    return wrong("help is no sentence");
                }
                is_family(name, kind).map_err(|what| format!("{what}: {line}"))?;
                if page.families.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return wrong("family comes twice");
                }
                if lines.peek().is_none_or(|next| next.starts_with('#')) {
                    return wrong("family without samples");
                }
                family = Some((name, kind));
                continue;
            }
            let Some((name, kind)) = family else { return wrong("sample before HELP and TYPE") };
            let sample = sample(line).ok_or_else(|| format!("no sample: {line}"))?;
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            let suffix = sample.name.strip_prefix(name);
            if !suffix.is_some_and(|suffix| suffixes.contains(&suffix)) {
                return wrong("sample of another family");
            }
            if sample.labels.contains_key("le") != (suffix == Some("_bucket")) {
                return wrong("le is for buckets");
            }
            if kind == "counter" && !(sample.value >= 0.0 && sample.value.fract() == 0.0) {
                return wrong("not a count");
            }
            if name.ends_with("_info") && sample.value != 1.0 {
                return wrong("info that is not 1");
            }
            if !series.insert((sample.name.clone(), sample.labels.clone())) {
                return wrong("series comes twice");
            }
            page.samples.push(sample);
        }
        let histograms: Vec<_> = page.families.iter().filter(|(_, kind)| *kind == "histogram").collect();
        histograms.into_iter().try_for_each(|(name, _)| page.check_histogram(name))?;
        Ok(page)
    }

    /// The value of the one series of this name whose labels are exactly these.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: BTreeMap<String, String> =
            labels.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect();
        let found = self.samples.iter().find(|sample| sample.name == name && sample.labels == labels);
        found.unwrap_or_else(|| panic!("no {name} {labels:?}")).value
    }

    fn check_histogram(&self, name: &str) -> Result<(), String> {
        let of = |suffix: &str| {
            let name = format!("{name}{suffix}");
            self.samples.iter().filter(move |sample| sample.name == name)
        };
        for count in of("_count") {
            let buckets = of("_bucket").filter(|bucket| {
                let mut labels = bucket.labels.clone();
                labels.remove("le").is_some() && labels == count.labels
            });
            let buckets: Vec<(f64, f64)> =
                buckets.map(|bucket| (bucket.labels["le"].parse().unwrap(), bucket.value)).collect();
            let grow = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            if !grow || buckets.len() < 2 {
                return Err(format!("{name}: buckets are not cumulative: {buckets:?}"));
            }
            if buckets.last() != Some(&(f64::INFINITY, count.value)) {
                return Err(format!("{name}: the +Inf bucket is not the count: {buckets:?}"));
            }
            if of("_sum").filter(|sum| sum.labels == count.labels).count() != 1 {
                return Err(format!("{name}: no sum"));
            }
        }
        if of("_count").count() * 2 == of("_count").count() + of("_sum").count() {
            Ok(())
        } else {
            Err(format!("{name}: a sum without a count"))
        }
    }
}

fn is_family(name: &str, kind: &str) -> Result<(), &'static str> {
    let reserved = ["_bucket", "_sum", "_count"];
    match kind {
        _ if !name.starts_with("timeball_") || !is_word(name) => Err("bad name"),
        "counter" if !name.ends_with("_total") => Err("a counter ends in _total"),
        "gauge" | "histogram" if name.ends_with("_total") => Err("only a counter ends in _total"),
        _ if reserved.iter().any(|suffix| name.ends_with(suffix)) => Err("a suffix of histograms"),
        "counter" | "gauge" | "histogram" => Ok(()),
        _ => Err("unknown kind"),
    }
}

/// Lower case, as all of ours are.
fn is_word(text: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit();
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.chars().all(fits)
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    let rest = match rest.strip_prefix('{') {
        None => rest,
        Some(mut rest) => loop {
            let (label, quoted) = rest.split_once("=\"")?;
            let (text, after) = unquoted(quoted)?;
            if !is_word(label) || text.is_empty() || labels.insert(label.to_owned(), text).is_some() {
                return None;
            }
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => break after.strip_prefix('}')?,
            }
        },
    };
    let value = rest.strip_prefix(' ')?;
    let value = value.parse().ok().filter(|_| !value.contains(' '))?;
    is_word(name).then(|| Sample { name: name.to_owned(), labels, value })
}

/// The text up to its closing quote, and what follows.
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => text.push(match characters.next()?.1 {
                'n' => '\n',
                same @ ('\\' | '"') => same,
                _ => return None,
            }),
            _ => text.push(character),
        }
    }
    None
}

#[test]
fn the_reader_refuses_what_is_wrong() {
    let histogram = |buckets: &str| {
        format!(
            "# HELP timeball_h H.\n# TYPE timeball_h histogram\n{buckets}timeball_h_sum 1\ntimeball_h_count 2\n"
        )
    };
    let bucket = |le: &str, count: u32| format!("timeball_h_bucket{{le=\"{le}\"}} {count}\n");
    let good = histogram(&(bucket("1", 1) + &bucket("+Inf", 2)));
    assert!(Page::parse(&good).is_ok(), "{:?}", Page::parse(&good));
    let gauge = "# HELP timeball_a A.\n# TYPE timeball_a gauge\n";
    let wrong = [
        ("timeball_a 1\n".to_owned(), "before HELP"),
        ("# HELP timeball_a A.\ntimeball_a 1\n".to_owned(), "no TYPE"),
        (gauge.to_owned(), "without samples"),
        (format!("{gauge}timeball_a 1"), "does not end"),
        (format!("{gauge}timeball_a 1\ntimeball_a 2\n"), "series comes twice"),
        (format!("{gauge}timeball_a 1\n{gauge}timeball_a{{b=\"c\"}} 1\n"), "family comes twice"),
        (format!("{gauge}timeball_b 1\n"), "another family"),
        (format!("{gauge}timeball_a{{b=\"c}} 1\n"), "no sample"),
        (format!("{gauge}timeball_a{{b=\"\\x\"}} 1\n"), "no sample"),
        (format!("{gauge}timeball_a{{le=\"1\"}} 1\n"), "le is for buckets"),
        (gauge.replace("gauge", "counter") + "timeball_a 1\n", "_total"),
        (
            format!("{gauge}timeball_a_total 1\n").replace("timeball_a ", "timeball_a_total "),
            "only a counter",
        ),
        (histogram(&(bucket("1", 3) + &bucket("+Inf", 2))), "not cumulative"),
        (histogram(&(bucket("2", 1) + &bucket("1", 1) + &bucket("+Inf", 2))), "not cumulative"),
        (histogram(&(bucket("1", 1) + &bucket("+Inf", 1))), "not the count"),
        (good.replace("timeball_h_sum 1\n", ""), "no sum"),
    ];
    for (text, what) in wrong {
        let said = Page::parse(&text).expect_err(&text);
        assert!(said.contains(what), "{said}\n{text}");
    }
}
