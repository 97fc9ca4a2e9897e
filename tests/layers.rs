//! Keeps the layers acyclic and the deterministic modules free of clocks, threads, files and sockets.
//!
//! A module may name only the modules its row lists. The rows are in order: each lists only modules above it,
//! which is what makes a cycle impossible.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module, the modules it may import, and whether it is deterministic.
const LAYERS: [(&str, &[&str], bool); 14] = [
    ("time", &[], true),
    ("wire", &["time"], true),
    ("sys", &["time"], false),
    ("auth", &["wire"], true),
    ("snapshot", &["time", "wire"], true),
    ("metrics", &[], false),
    ("serve", &["time", "wire", "auth", "snapshot", "metrics"], true),
    ("control", &["time", "wire", "auth", "snapshot"], true),
    ("clock", &["time", "wire", "sys", "snapshot"], false),
    ("config", &["time", "wire", "auth", "serve", "control"], false),
    ("datapath", &["time", "wire", "sys", "metrics"], false),
    (
        "daemon",
        &[
            "time", "wire", "sys", "auth", "snapshot", "metrics", "serve", "control", "clock", "config",
            "datapath",
        ],
        false,
    ),
    ("load", &["time", "wire", "sys"], false),
    (
        "cli",
        &[
            "time", "wire", "sys", "auth", "snapshot", "metrics", "serve", "clock", "config", "datapath",
            "daemon", "load",
        ],
        false,
    ),
];

/// What a deterministic module must not name. Atomics are allowed (shared tables), blocking is not.
const FORBIDDEN: [&str; 16] = [
    "std::thread",
    "std::fs",
    "std::io",
    "std::os",
    "std::process",
    "std::env",
    "Instant",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "UnixStream",
    "libc::",
    "Mutex",
    "RwLock",
    "sleep(",
    "tracing::",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.to_string_lossy().ends_with("tests.rs")
        {
            found.push(path);
        }
    }
    found
}

/// The code of a file without comments and without its test module, which comes last.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    // A test module comes last, here or in a file of its own; other test-only items stand before real code.
    let end =
        ["#[cfg(test)]\nmod tests", "#[cfg(test)]\n#[path"].iter().filter_map(|mark| text.find(mark)).min();
    let code = &text[..end.unwrap_or(text.len())];
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The crate's modules a text names, as `crate::module` or inside `use crate::{module, ...}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        let names: Vec<&str> = match part.strip_prefix('{') {
            Some(list) => top_level_names(list),
            None => vec![part],
        };
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            named.insert(name[..end].to_owned());
        }
    }
    named
}

/// The first name of each item of a brace list, nested lists left out.
fn top_level_names(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (index, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(list[start..index].trim());
                return names;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(list[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    names
}

fn modules() -> impl Iterator<Item = (&'static str, &'static [&'static str], bool, Vec<PathBuf>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    LAYERS.into_iter().map(move |(name, allowed, pure)| (name, allowed, pure, sources(&root.join(name))))
}

#[test]
fn imports_go_down_only() {
    let known: Vec<&str> = LAYERS.iter().map(|layer| layer.0).collect();
    for (position, (name, allowed, _)) in LAYERS.iter().enumerate() {
        for import in *allowed {
            assert!(known[..position].contains(import), "{name} lists {import}, which is not above it");
        }
    }
    let mut seen = 0;
    for (name, allowed, _, files) in modules() {
        for file in files {
            for import in imports(&code(&file)) {
                seen += 1;
                let fine =
                    import == name || allowed.contains(&import.as_str()) || !known.contains(&import.as_str());
                assert!(fine, "{}: layer `{name}` must not import `{import}`", file.display());
            }
        }
    }
    assert!(seen > 20, "only {seen} imports found: the reader of this test is broken");
}

#[test]
fn every_module_has_its_row() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .map(|line| line.trim_end_matches(';'))
        .collect();
    let rows: BTreeSet<&str> = LAYERS.iter().map(|layer| layer.0).collect();
    assert_eq!(declared, rows);
}

#[test]
fn deterministic_modules_name_no_clock_thread_file_or_socket() {
    for (name, _, deterministic, files) in modules() {
        if !deterministic {
            continue;
        }
        for file in files {
            let code = code(&file);
            for word in FORBIDDEN {
                assert!(
                    !code.contains(word),
                    "{}: `{name}` is deterministic but names {word}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let allowed = [
        "src/sys/",
        "src/datapath/umem.rs",
        "src/datapath/ring.rs",
        "src/datapath/ring/testing.rs",
        "src/load/xsk.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in sources(&root.join("src")) {
        let name = file.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if !allowed.iter().any(|prefix| name.starts_with(prefix)) {
            assert!(!code(&file).contains("unsafe "), "{name} has unsafe code");
        }
    }
}

#[test]
fn the_reader_sees_imports_in_lists() {
    let named = imports("use crate::{serve::{Refusal, access}, time::Ppm};\nuse crate::wire;");
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["serve", "time", "wire"]);
}
