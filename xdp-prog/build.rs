//! Compiles each `src/NAME.bpf.c` with clang into the ELF object that `lib.rs` exports.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, io};

/// The names of the server's programs, and of those that only the load generator needs.
const PROGRAMS: &[&str] = &["steer"];
const LOAD_PROGRAMS: &[&str] = &["load_redirect"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CLANG");
    let load = if env::var_os("CARGO_FEATURE_LOAD").is_some() { LOAD_PROGRAMS } else { &[] };
    match PROGRAMS.iter().chain(load).try_for_each(|name| compile(name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn compile(name: &str) -> Result<(), String> {
    let source = format!("src/{name}.bpf.c");
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
    command.args(["-Wall", "-Wextra", "-Werror", "-c", &source, "-o"]).arg(&object);
    // Debian keeps <asm/types.h> in a directory per architecture, which clang forgets for the BPF target.
    let headers = format!("/usr/include/{}-linux-gnu", variable("CARGO_CFG_TARGET_ARCH")?);
    if Path::new(&headers).is_dir() {
        command.args(["-idirafter", &headers]);
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "{clang} could not compile {source} ({status}); if a header is missing: apt install libbpf-dev linux-libc-dev"
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
