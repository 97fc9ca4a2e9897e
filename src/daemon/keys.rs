//! The key file: who may read it, and what of it clients may use.
//!
//! Owns: opening and refusing it. Does not own: its format ([`crate::auth`]), nor who gets the keys.

use crate::auth::{KEY_FILE_OCTETS_MAX, KeyFileProblems, KeyId, KeyRules, KeyTable, parse_key_file};
use crate::config::{Keys, TrustedKeys};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::Zeroizing;

/// The bits that let others than the owner read or write a file.
const OTHERS: u32 = 0o077;

/// Why a key file is not used.
#[derive(Debug, Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("{}: cannot read the key file: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A folder, a pipe, a device.
    #[error("{}: must be a file, with keys", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// Others can read or write it.
    #[error("{0}: others may read or write it (mode {mode:04o}): must be its owner's alone, chmod 600 {0}", path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No key file is that long.
    #[error("{}: larger than a key file may be, {} bytes", path.display(), KEY_FILE_OCTETS_MAX)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// What is in it is wrong.
    #[error(transparent)]
    Problems(#[from] KeyFileProblems),
    /// The configuration trusts a key that is not there.
    #[error("keys.trusted: key {id} is not in {}", path.display())]
    NotThere {
        /// The key.
        id: KeyId,
        /// The file.
        path: PathBuf,
    },
}

/// The keys of the configured file, if one is.
///
/// # Errors
/// The file cannot be read, others can, or something in it is wrong; a trusted key is missing.
pub fn load(keys: &Keys) -> Result<KeyTable, KeysError> {
    let Some(path) = &keys.file else { return Ok(KeyTable::empty()) };
    let text = read(path)?;
    let rules = KeyRules { allow_md5: keys.allow_md5 };
    let table = parse_key_file(&path.display().to_string(), &text, rules)?;
    if let TrustedKeys::Only(ids) = &keys.trusted
        && let Some(&id) = ids.iter().find(|&&id| table.get(id).is_none())
    {
        return Err(KeysError::NotThere { id, path: path.clone() });
    }
    Ok(table)
}

/// Those of `table` that clients may use.
#[must_use]
pub fn for_clients(keys: &Keys, table: &KeyTable) -> KeyTable {
    match &keys.trusted {
        TrustedKeys::All => table.clone(),
        TrustedKeys::Only(ids) => table.restricted_to(ids),
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let unreadable = |cause| KeysError::Unreadable { path: path.to_owned(), cause };
    // First by name, since opening a pipe would wait for a writer; then what was opened, since the name may have moved.
    check(path, &fs::metadata(path).map_err(unreadable)?)?;
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check(path, &metadata)?;
    // With room for all of it, so that no half of it is left behind where a buffer grew out of its place.
    let length = metadata.len().min(KEY_FILE_OCTETS_MAX) as usize;
    let mut text = Zeroizing::new(Vec::with_capacity(length + 2));
    file.take(KEY_FILE_OCTETS_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > KEY_FILE_OCTETS_MAX {
        return Err(KeysError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), KeysError> {
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        Err(KeysError::NoFile { path: path.to_owned() })
    } else if mode & OTHERS != 0 {
        Err(KeysError::Loose { path: path.to_owned(), mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn keys(path: &Path) -> Keys {
        Keys { file: Some(path.to_owned()), ..Keys::default() }
    }

    fn write(folder: &TempDir, text: &str, mode: u32) -> PathBuf {
        let path = folder.path().join("timeball.keys");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = TempDir::new().unwrap();
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
            let path = write(&folder, "1 SHA1 secret\n", mode);
            match load(&keys(&path)) {
                Ok(table) => assert!(fine && table.len() == 1, "{mode:o}"),
                Err(error) => {
                    let shown = path.display();
                    let expected = format!(
                        "{shown}: others may read or write it (mode {mode:04o}): must be its owner's alone, \
                         chmod 600 {shown}"
                    );
                    assert_eq!((error.to_string(), fine), (expected, false));
                }
            }
        }
    }

    #[test]
    fn trusted_keys_must_be_there_and_are_all_that_clients_may_use() {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, "1 SHA1 secret\n2 SHA256 secret\n", 0o600);
        let id = |number| KeyId::new(number).unwrap();
        let trusting = |ids| Keys { trusted: TrustedKeys::Only(ids), ..keys(&path) };
        let two = trusting(vec![id(2)]);
        let table = load(&two).unwrap();
        assert_eq!(table.len(), 2, "our own sources may use both");
        assert_eq!(for_clients(&two, &table).types().map(|(id, _)| id.number()).collect::<Vec<_>>(), [2]);
        assert_eq!(for_clients(&keys(&path), &table).len(), 2);
        let error = load(&trusting(vec![id(2), id(7)])).unwrap_err().to_string();
        assert_eq!(error, format!("keys.trusted: key 7 is not in {}", path.display()));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = TempDir::new().unwrap();
        let error = |path: &Path| load(&keys(path)).unwrap_err().to_string();
        let missing = folder.path().join("none");
        assert!(error(&missing).contains("cannot read the key file: No such file"), "{}", error(&missing));
        assert!(error(folder.path()).ends_with("must be a file, with keys"), "{}", error(folder.path()));
        assert!(load(&Keys::default()).unwrap().is_empty());
        let path = write(&folder, "1 MD5 secret\n", 0o600);
        assert!(error(&path).contains(":1: key 1: type MD5"), "{}", error(&path));
        assert_eq!(load(&Keys { allow_md5: true, ..keys(&path) }).unwrap().len(), 1);
    }
}
