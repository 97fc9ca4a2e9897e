//! Other projects' NTP clients with symmetric keys: each key type that a client has is answered with its own MAC, over
//! both ways in, and a client whose key is another one takes no time from us.
//!
//! Clients judge the MAC; the counters of `timeball status` say which way it went and how it was signed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{Carrier, Daemon, Lab, SERVER, can_have_labs, eventually, peer, run, run_well, text};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Offsets beyond this are no jitter of a busy test machine any more.
const OFFSET_SECONDS_MAX: f64 = 0.05;

const HEX_16: &str = "000102030405060708090a0b0c0d0e0f";
const HEX_20: &str = "a27872d3030a9025b8446c751b4551a7629af65c";

/// chrony's key file: its id 1 to 7 for each type that chronyd has, 8 typeless.
fn chronys() -> String {
    format!(
        "1 MD5 ASCII:a#secret\n2 SHA1 HEX:{HEX_20}\n3 SHA256 HEX:{HEX_16}\n4 SHA384 HEX:{HEX_16}\n\
         5 SHA512 HEX:{HEX_16}\n6 AES128 HEX:{HEX_16}\n7 AES256 HEX:{HEX_16}{HEX_16}\n8 typeless-secret\n"
    )
}

/// ntpd's, with a word for AES-128 that both ntpd and ntpsec understand.
fn ntpds() -> String {
    format!(
        "1 MD5 secret  # a comment\n2 SHA1 {HEX_20}\n3 SHA256 {HEX_20}\n6 AES128CMAC {HEX_16}\n9 M 12345678901234567890\n"
    )
}

struct Keys(TempDir);

impl Keys {
    fn new(text: &str) -> Self {
        let keys = Self(TempDir::new().unwrap());
        keys.replace(text);
        keys
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("timeball.keys")
    }

    fn replace(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
        fs::set_permissions(self.path(), Permissions::from_mode(0o600)).unwrap();
    }

    fn configuration(&self, carrier: Carrier) -> String {
        let path = self.path();
        format!("{}\n[keys]\nfile = \"{}\"\nallow-md5 = true\n", carrier.configuration(""), path.display())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Counts {
    signed: u64,
    crypto_naks: u64,
    other_path: u64,
}

/// After [`Daemon::replies`], which waits until the counters are published.
fn counts(daemon: &Daemon, carrier: Carrier) -> Counts {
    let _ = daemon.replies();
    let status = daemon.status();
    let (used, unused) = if carrier == Carrier::Socket { ("socket", "af_xdp") } else { ("af_xdp", "socket") };
    let sum = |path: &str, counter: &str| -> u64 {
        status["workers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|worker| worker[path][counter].as_u64().unwrap())
            .sum()
    };
    Counts {
        signed: sum(used, "signed_replies"),
        crypto_naks: sum(used, "crypto_naks"),
        other_path: sum(unused, "replies") + sum(unused, "crypto_naks"),
    }
}

/// What chronyd says of one exchange with `server` with these options of its `server` line.
fn chronyd(lab: &Lab, program: &Path, server: &str, options: &str, keys: &str, patience: &str) -> String {
    let folder = TempDir::new().unwrap();
    let (configuration, key_file) = (folder.path().join("chrony.conf"), folder.path().join("keys"));
    fs::write(&key_file, keys).unwrap();
    fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    let line =
        format!("server {server} iburst maxsamples 1 {options}\ncmdport 0\nkeyfile {}\n", key_file.display());
    fs::write(&configuration, line).unwrap();
    let arguments = ["-Q", "-t", patience, "-u", "root", "-f"];
    text(&run(lab.on_client(program).args(arguments).arg(configuration)))
}

#[track_caller]
fn assert_took_time(client: &str, output: &str) {
    let offset = output.split("System clock wrong by ").nth(1).and_then(|rest| rest.split(' ').next());
    let offset: f64 = offset.unwrap_or_else(|| panic!("{client} took no time:\n{output}")).parse().unwrap();
    assert!(offset.abs() < OFFSET_SECONDS_MAX, "{client}: {offset} s\n{output}");
}

#[track_caller]
fn chronyd_is_answered_with_each_key(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer("chronyd") else { return };
    let (lab, keys) = (Lab::new(&[]), Keys::new(&chronys()));
    let daemon = Daemon::start(&lab, &keys.configuration(carrier));
    for server in SERVER {
        // chronyd asks in version 3 where the digest would be cut off in version 4, unless told otherwise.
        for options in [
            "key 1",
            "key 2",
            "key 3",
            "key 4",
            "key 5",
            "key 6",
            "key 7",
            "key 8",
            "key 3 version 4",
            "key 5 version 4",
        ] {
            let before = counts(&daemon, carrier);
            let output = chronyd(&lab, &program, server, options, &chronys(), "5");
            assert_took_time(&format!("chronyd with {options}, {server}"), &output);
            let after = counts(&daemon, carrier);
            assert!(after.signed > before.signed, "{options}: {before:?} {after:?}");
            assert_eq!((after.crypto_naks, after.other_path), (0, 0), "{options}");
        }
    }
}

#[test]
fn chronyd_is_answered_with_each_key_in_driver_mode() {
    chronyd_is_answered_with_each_key(Carrier::Driver);
}

#[test]
fn chronyd_is_answered_with_each_key_over_sockets() {
    chronyd_is_answered_with_each_key(Carrier::Socket);
}

/// The same id with another secret, another type, and an id that the server does not know; then, so that it is the key
/// that made the difference, the right one.
#[track_caller]
fn chronyd_with_a_wrong_key_takes_no_time(carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer("chronyd") else { return };
    let (lab, keys) = (Lab::new(&[]), Keys::new(&chronys()));
    let daemon = Daemon::start(&lab, &keys.configuration(carrier));
    let path = if carrier == Carrier::Socket { "socket" } else { "af_xdp" };
    for (wrong, refusal) in [
        ("6 AES128 HEX:ff0102030405060708090a0b0c0d0e0f\n".to_owned(), "authentication"),
        (format!("6 SHA1 HEX:{HEX_16}\n"), "authentication"),
        (format!("6 MD5 HEX:{HEX_16}\n"), "authentication"),
        (format!("66 AES128 HEX:{HEX_16}\n"), "unknown-key"),
    ] {
        let id = wrong.split(' ').next().unwrap();
        let (before, refused) = (counts(&daemon, carrier), daemon.refusals(path, refusal));
        let output = chronyd(&lab, &program, SERVER[0], &format!("key {id}"), &wrong, "3");
        assert!(!output.contains("System clock wrong by"), "time with {wrong}:\n{output}");
        let after = counts(&daemon, carrier);
        assert!(after.crypto_naks > before.crypto_naks, "{wrong}: {after:?}");
        assert_eq!((after.signed, after.other_path), (before.signed, 0), "{wrong}");
        let more = daemon.refusals(path, refusal) - refused;
        assert_eq!(more, after.crypto_naks - before.crypto_naks, "{wrong}: told, and why");
    }
    assert_took_time("chronyd", &chronyd(&lab, &program, SERVER[0], "key 6", &chronys(), "5"));
}

#[test]
fn chronyd_with_a_wrong_key_takes_no_time_in_driver_mode() {
    chronyd_with_a_wrong_key_takes_no_time(Carrier::Driver);
}

#[test]
fn chronyd_with_a_wrong_key_takes_no_time_over_sockets() {
    chronyd_with_a_wrong_key_takes_no_time(Carrier::Socket);
}

/// ntpdig and sntp print `DATE TIME (ZONE) OFFSET +/- ERROR ADDRESS sSTRATUM LEAP`.
#[track_caller]
fn judge_sntp_line(client: &str, output: &str) {
    let line =
        output.lines().find(|line| line.contains(" +/- ")).unwrap_or_else(|| panic!("{client}:\n{output}"));
    let words: Vec<_> = line.split_whitespace().collect();
    let offset: f64 = words[3].parse().unwrap();
    assert!(offset.abs() < OFFSET_SECONDS_MAX && words.contains(&"s10"), "{client}:\n{output}");
}

/// A client of ntpd's family with each key that it has.
#[track_caller]
fn one_shot_client_is_answered_with_each_key(name: &str, more: &[&str], ids: &[&str], carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer(name) else { return };
    let (lab, keys) = (Lab::new(&[]), Keys::new(&ntpds()));
    let daemon = Daemon::start(&lab, &keys.configuration(carrier));
    for server in SERVER {
        for id in ids {
            let before = counts(&daemon, carrier);
            let mut command = lab.on_client(&program);
            command.args(["-a", id, "-k"]).arg(keys.path()).args(more).arg(server);
            judge_sntp_line(&format!("{name} -a {id}"), &run_well(&mut command));
            let after = counts(&daemon, carrier);
            assert!(after.signed > before.signed, "{name} -a {id}: {before:?} {after:?}");
            assert_eq!((after.crypto_naks, after.other_path), (0, 0), "{name} -a {id}");
        }
    }
}

#[test]
fn ntpdig_is_answered_with_each_key_in_driver_mode() {
    one_shot_client_is_answered_with_each_key("ntpdig", &[], &["1", "2", "6"], Carrier::Driver);
}

#[test]
fn ntpdig_is_answered_with_each_key_over_sockets() {
    one_shot_client_is_answered_with_each_key("ntpdig", &[], &["1", "2", "6"], Carrier::Socket);
}

// With an AES128CMAC key sntp 4.2.8p15 sends a request without MAC ("mac_size is 0").
#[test]
fn sntp_is_answered_with_each_key_in_driver_mode() {
    one_shot_client_is_answered_with_each_key(
        "sntp",
        &["-K", "/dev/null"],
        &["1", "2", "9"],
        Carrier::Driver,
    );
}

#[test]
fn sntp_is_answered_with_each_key_over_sockets() {
    one_shot_client_is_answered_with_each_key(
        "sntp",
        &["-K", "/dev/null"],
        &["1", "2", "9"],
        Carrier::Socket,
    );
}

#[test]
fn hangup_reads_the_keys_again_and_keeps_them_if_they_cannot_be_read() {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer("chronyd") else { return };
    let (lab, keys) = (Lab::new(&[]), Keys::new(&format!("1 AES128 HEX:{HEX_16}\n")));
    let daemon = Daemon::start(&lab, &keys.configuration(Carrier::Driver));
    let takes_time = |id: &str| {
        let output = chronyd(
            &lab,
            &program,
            SERVER[0],
            &format!("key {id}"),
            &format!("{id} AES128 HEX:{HEX_16}\n"),
            "2",
        );
        output.contains("System clock wrong by")
    };
    let hang_up = |logged: &str| {
        run_well(Command::new("sh").args(["-c", &format!("kill -HUP {}", daemon.pid())]));
        eventually(logged, || daemon.log().contains(logged).then_some(()));
    };
    assert!(takes_time("1") && !takes_time("2"));
    keys.replace("2 AES128 short\n");
    hang_up("the keys stay as they are");
    assert!(
        daemon.log().contains("key 2: a secret of 5 octets: must be of 16 for AES128"),
        "{}",
        daemon.log()
    );
    assert!(takes_time("1"), "the old key still works");
    keys.replace(&format!("2 AES128 HEX:{HEX_16}\n3 AES128 HEX:{HEX_16}\n"));
    hang_up("keys=2");
    assert!(takes_time("2") && !takes_time("1"), "the new key works, and the old one no longer");
    assert!(!daemon.log().contains(HEX_16), "no secret is logged");
}

/// What a daemon of ntpd's family runs with.
fn ntpd_configuration(folder: &Path, key_file: &Path, id: &str) -> String {
    format!(
        "statsdir {0}/\nstatistics peerstats\nfilegen peerstats file peerstats type none enable\nkeys {1}\n\
         trustedkey {id}\ndisable ntp\nserver {2} key {id} iburst minpoll 3 maxpoll 3\n",
        folder.display(),
        key_file.display(),
        SERVER[0]
    )
}

/// In a line of peerstats: configured, authentication wanted, authentic, reachable (RFC 9327 section 3.2).
const AUTHENTIC_AND_REACHABLE: u32 = 0xf000;

/// A client of ntpd's family that runs on, with each key that it has: by its own account the replies are authentic.
#[track_caller]
fn daemon_is_answered_with_each_key(name: &str, ids: &[&str], carrier: Carrier) {
    if !can_have_labs() {
        return;
    }
    let Some(program) = peer(name) else { return };
    let (lab, keys) = (Lab::new(&[]), Keys::new(&ntpds()));
    let daemon = Daemon::start(&lab, &keys.configuration(carrier));
    for id in ids {
        let folder = TempDir::new().unwrap();
        let configuration = folder.path().join("ntp.conf");
        fs::write(&configuration, ntpd_configuration(folder.path(), &keys.path(), id)).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let before = counts(&daemon, carrier);
        let mut command = lab.on_client(&program);
        command.args(["-n", "-g", "-c"]).arg(&configuration);
        let mut client = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let said = || fs::read_to_string(folder.path().join("log")).unwrap();
        let line = (0..300).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let text = fs::read_to_string(folder.path().join("peerstats")).unwrap_or_default();
            text.lines().next().map(str::to_owned)
        });
        client.kill().unwrap();
        client.wait().unwrap();
        let line = line.unwrap_or_else(|| panic!("{name}, key {id}: no sample in 30 s\n{}", said()));
        let words: Vec<_> = line.split_whitespace().collect();
        let (status, offset) = (u32::from_str_radix(words[3], 16).unwrap(), words[4].parse::<f64>().unwrap());
        assert_eq!(status & AUTHENTIC_AND_REACHABLE, AUTHENTIC_AND_REACHABLE, "{name}, key {id}: {line}");
        assert!(offset.abs() < OFFSET_SECONDS_MAX, "{name}, key {id}: {line}");
        let after = counts(&daemon, carrier);
        assert!(after.signed > before.signed, "{name}, key {id}: {before:?} {after:?}");
        assert_eq!((after.crypto_naks, after.other_path), (0, 0), "{name}, key {id}");
    }
}

#[test]
fn ntpd_is_answered_with_each_key_in_driver_mode() {
    daemon_is_answered_with_each_key("ntp-ntpd", &["1", "2", "3", "6"], Carrier::Driver);
}

#[test]
fn ntpd_is_answered_with_each_key_over_sockets() {
    daemon_is_answered_with_each_key("ntp-ntpd", &["6"], Carrier::Socket);
}

#[test]
fn ntpsec_is_answered_with_each_key_in_driver_mode() {
    daemon_is_answered_with_each_key("ntpsec-ntpd", &["1", "2", "6"], Carrier::Driver);
}

#[test]
fn ntpsec_is_answered_with_each_key_over_sockets() {
    daemon_is_answered_with_each_key("ntpsec-ntpd", &["3"], Carrier::Socket);
}
