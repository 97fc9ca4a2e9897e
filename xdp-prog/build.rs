//! Compiles the C programs with clang into the ELF objects that `lib.rs`, `load.rs` and `load_redirect.rs` export.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, io};

/// The server's program runs on every kernel that has what it calls.
const STEER: Source = Source { name: "steer", options: &[] };
/// The load generator exchanges a value atomically, for which clang wants to hear of Linux 5.12 or newer.
const LOAD: Source = Source { name: "load", options: &["-mcpu=v3"] };
/// The load generator's other engine takes replies through AF_XDP.
const LOAD_REDIRECT: Source = Source { name: "load_redirect", options: &[] };

/// `src/NAME.bpf.c`, which becomes `NAME.bpf.o`.
struct Source {
    name: &'static str,
    options: &'static [&'static str],
}

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CLANG");
    let all = [STEER, LOAD, LOAD_REDIRECT];
    let sources = if env::var_os("CARGO_FEATURE_LOAD").is_some() { &all[..] } else { &all[..1] };
    match sources.iter().try_for_each(compile) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn compile(source: &Source) -> Result<(), String> {
    let Source { name, options } = source;
    let input = format!("src/{name}.bpf.c");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let object = PathBuf::from(variable("OUT_DIR")?).join(format!("{name}.bpf.o"));
    // A BPF object has the byte order of the machine it will run on.
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb",
        _ => "bpfel",
    };
    let mut command = Command::new(&clang);
    // -g is for the BTF that describes the maps. The compilation directory stays out of the object: same source, same bytes.
    command.args(["-target", target, "-O2", "-g", "-ffile-compilation-dir=.", "-std=gnu11"]);
    command.args(["-Wall", "-Wextra", "-Werror", "-c", &input, "-o"]).arg(&object).args(*options);
    // Debian keeps <asm/types.h> in a directory per architecture, which clang forgets for the BPF target.
    let headers = format!("/usr/include/{}-linux-gnu", variable("CARGO_CFG_TARGET_ARCH")?);
    if Path::new(&headers).is_dir() {
        command.args(["-idirafter", &headers]);
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "{clang} could not compile {input} ({status}); if a header is missing: apt install libbpf-dev linux-libc-dev"
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "{clang} not found: the XDP program is C; on Debian: apt install clang libbpf-dev, or set CLANG to a clang 14 or newer"
        )),
        Err(error) => Err(format!("cannot run {clang}: {error}")),
    }
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}; run by cargo?"))
}
