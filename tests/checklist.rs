//! Every line of the RFC checklist that belongs to the associations is named by a test, or here, with the reason why none
//! can name it.
//!
//! The checklist has one testable sentence of the RFCs in each line. A test names lines in its doc comment: "Checklist 7",
//! "Checklist 34, 35" or "Checklist 6 to 15".

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The lines, 60 to 67 and 86 to 89 being the discipline's and the daemon's, 96 and up later work.
fn lines() -> impl Iterator<Item = u32> {
    (1..=59).chain(68..=85).chain(90..=95)
}

/// What no test can show, and why.
const UNTESTABLE: [(u32, &str); 2] = [
    (
        82,
        "two extension fields that need different MAC algorithms: no extension field is known here, so no two are",
    ),
    (
        92,
        "smeared time is never mixed: nothing here smears, and a smearing server says nothing of it in its packets",
    ),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The numbers that follow the word: "7", "34, 35", "26 and 59" or "6 to 15".
fn numbers(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut is_range = false;
    for word in text.split(' ') {
        match word.trim_end_matches([',', '.', ':', ')']).parse::<u32>() {
            Ok(number) => {
                let first = found.last().copied().filter(|_| is_range).unwrap_or(number);
                found.extend(first..=number);
                is_range = false;
                if word.ends_with(['.', ':', ')']) {
                    break;
                }
            }
            Err(_) if word == "to" => is_range = true,
            Err(_) if word == "and" => {}
            Err(_) => break,
        }
    }
    found
}

/// The tests that name each line: file and function.
fn named() -> BTreeMap<u32, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("tests"), &mut files);
    files.sort();
    let mut named: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap().display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        let (mut pending, mut is_test) = (BTreeSet::new(), false);
        for line in text.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("///") {
                for part in comment.split("hecklist ").skip(1) {
                    pending.extend(numbers(part));
                }
            } else if line.starts_with("#[") {
                is_test |= line == "#[test]";
            } else {
                let function = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                if let Some(function) = function.filter(|_| is_test) {
                    for number in &pending {
                        named.entry(*number).or_default().push(format!("{name} {function}"));
                    }
                }
                pending.clear();
                is_test = false;
            }
        }
    }
    named
}

#[test]
fn every_line_is_named_by_a_test_or_has_its_reason() {
    let named = named();
    let mut missing = Vec::new();
    for line in lines() {
        let reason = UNTESTABLE.iter().find(|(number, _)| *number == line);
        match (named.get(&line), reason) {
            (None, None) => missing.push(line),
            (Some(tests), Some((_, reason))) => panic!("{line} is tested by {tests:?} in spite of: {reason}"),
            _ => {}
        }
        println!(
            "{line}: {}",
            named.get(&line).map_or_else(|| reason.map_or("", |it| it.1).into(), |it| it.join("; "))
        );
    }
    assert!(missing.is_empty(), "no test names {missing:?}");
}

#[test]
fn the_reader_reads_lists_and_ranges() {
    let read = |text| numbers(text).into_iter().collect::<Vec<_>>();
    assert_eq!(read("7."), [7]);
    assert_eq!(read("34, 35. And 36"), [34, 35]);
    assert_eq!(read("26 and 59, accept() of A.5.5.3"), [26, 59]);
    assert_eq!(read("6 to 9, 17."), [6, 7, 8, 9, 17]);
    assert_eq!(read("lines"), [0_u32; 0]);
}

/// RFC 8633 section 6.2: no address of anybody's server in what is delivered. Checklist 93.
#[test]
fn nobodys_server_is_in_the_default_configuration() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("scripts/timeball.example.toml"), root.join("scripts/timeball.service")];
    for folder in ["src/config", "src/daemon", "src/cli", "src/control"] {
        sources(&root.join(folder), &mut files);
    }
    let known = [
        "ntp.org",
        "time.google",
        "time.cloudflare",
        "time.apple",
        "time.windows",
        "nist.gov",
        "time.facebook",
    ];
    for file in files {
        let text = fs::read_to_string(&file).unwrap().to_lowercase();
        for name in known {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
    // What it shows is reserved for documents (RFC 2606, RFC 5737) or means whoever listens.
    let example = fs::read_to_string(root.join("scripts/timeball.example.toml")).unwrap();
    let shown = example.lines().filter_map(|line| line.strip_prefix("address = \"")?.split('"').next());
    for address in shown {
        let is_reserved = address.ends_with(".example.org") || address.starts_with("192.0.2.");
        let is_everybody = address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_multicast() || address.is_unspecified());
        assert!(is_reserved || is_everybody, "the example names {address}");
    }
}
