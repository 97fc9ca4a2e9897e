//! The files of `timeball load` and `timeball report`: records to read, and what is written.
//!
//! Owns: which files may be read and how much of them, that no file is named twice, that what is written is not lost to
//! the failure of another. Does not own: what is in them.
//!
//! The one idea a newcomer lacks: two names may be one file (links, redirections of the shell), so files are compared by
//! device and inode, and before anything is written.

use super::{Failure, wrong_input};
use crate::load::record::Run;
use std::fmt::Display;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Most octets of a record. A hundred steps with every bucket of their histograms in use have about 30 MB.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// The regular files that a command reads and writes; what it reads may come twice.
#[derive(Default)]
pub(super) struct Files {
    /// Device, inode, and what the user called it.
    known: Vec<((u64, u64), String)>,
}

impl Files {
    /// Reads a record: a file or a pipe.
    pub(super) fn read_run(&mut self, path: &Path) -> Result<Run, Failure> {
        let wrong = |error: &dyn Display| wrong_input(format_args!("{}: {error}", path.display()));
        let metadata = fs::metadata(path).map_err(|error| wrong(&error))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_fifo() {
            return Err(wrong(&"must be a file or a pipe with the record of a run (timeball load --json)"));
        }
        let mut bytes = Vec::new();
        if metadata.len() <= RECORD_BYTES_MAX {
            let file = File::open(path).map_err(|error| wrong(&error))?;
            file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
        }
        if metadata.len().max(bytes.len() as u64) > RECORD_BYTES_MAX {
            return Err(wrong(&format_args!("must have at most {} MiB", RECORD_BYTES_MAX >> 20)));
        }
        self.known.extend(identity(&metadata).map(|identity| (identity, path.display().to_string())));
        let text = String::from_utf8(bytes).map_err(|_| wrong(&"must be text: the record of a run"))?;
        Run::from_json(&text).map_err(|error| wrong(&error))
    }

    /// A file to write, which can be.
    pub(super) fn output(&mut self, flag: &str, path: &Path) -> Result<Output, Failure> {
        let name = format!("{flag} {}", path.display());
        let cannot = |error| wrong_input(format_args!("{name}: must be a file that can be written: {error}"));
        // From here on what is new goes again when it is dropped.
        let output = Output::open(path).map_err(cannot)?;
        let metadata = output.file.metadata().map_err(cannot)?;
        self.claim(name, &metadata)?;
        Ok(output)
    }

    /// Standard output, which may have been redirected to a file.
    pub(super) fn standard_output(&mut self) -> Result<(), Failure> {
        let metadata =
            io::stdout().as_fd().try_clone_to_owned().and_then(|stdout| File::from(stdout).metadata());
        metadata.map_or(Ok(()), |metadata| self.claim("standard output".to_owned(), &metadata))
    }

    fn claim(&mut self, name: String, metadata: &Metadata) -> Result<(), Failure> {
        let Some(identity) = identity(metadata) else { return Ok(()) };
        match self.known.iter().find(|(known, _)| *known == identity) {
            Some((_, other)) => Err(wrong_input(format_args!("{name}: must be another file than {other}"))),
            None => {
                self.known.push((identity, name));
                Ok(())
            }
        }
    }
}

/// Pipes and devices may be named as often as one likes.
fn identity(metadata: &Metadata) -> Option<(u64, u64)> {
    metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
}

/// A file that can be written, found out before there is anything to write. What is in it stays until then; if it was
/// not there and nothing gets written, it goes again.
pub(super) struct Output {
    path: PathBuf,
    /// Open until it is written, so that who reads a pipe waits for that.
    file: File,
    /// Where the file is that was made for this.
    made: Option<PathBuf>,
}

impl Output {
    /// Opens what is there, or makes a file. A pipe without a reader is an error: whoever waited for one would do so with
    /// every signal held.
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).custom_flags(libc::O_NONBLOCK);
        let (file, made) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match options.open(path) {
                // A symbolic link to where nothing is yet. What is made is the file, and the link stays whatever happens.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    (options.create(true).open(path)?, Some(fs::canonicalize(path)?))
                }
                opened => (opened?, None),
            },
            made => (made?, Some(path.to_owned())),
        };
        Ok(Self { path: path.to_owned(), file, made })
    }

    /// Writes all of it, and says so.
    ///
    /// # Errors
    /// The file, and why not.
    pub(super) fn write(
        mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), String> {
        self.made = None;
        let all = || {
            let mut file = BufWriter::new(File::create(&self.path)?);
            write(&mut file)?;
            file.flush()
        };
        let path = self.path.display();
        all().map_err(|error: io::Error| format!("{path}: {error}"))?;
        let _ = writeln!(io::stderr(), "timeball: wrote {path}");
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        // Whatever others have put in its place meanwhile is theirs.
        let there = fs::symlink_metadata(made).ok().as_ref().and_then(identity);
        if there.is_some() && there == self.file.metadata().ok().as_ref().and_then(identity) {
            let _ = fs::remove_file(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    #[test]
    fn what_was_made_goes_again_and_nothing_else_does() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "old").unwrap();
        symlink("old", path("to-old")).unwrap();
        symlink("nothing", path("to-nothing")).unwrap();
        symlink("to-nothing", path("to-to-nothing")).unwrap();
        for (name, makes) in [
            ("new", "new"),
            ("old", "old"),
            ("to-old", "old"),
            ("to-nothing", "nothing"),
            ("to-to-nothing", "nothing"),
        ] {
            let before = fs::read_dir(folder.path()).unwrap().count();
            let output = Output::open(&path(name)).unwrap();
            assert!(path(makes).exists(), "{name}");
            drop(output);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before, "{name}");
            assert_eq!(fs::read_to_string(path("old")).unwrap(), "old");
        }
        // Through the link when there is something to write.
        Output::open(&path("to-to-nothing")).unwrap().write(|file| file.write_all(b"x")).unwrap();
        assert_eq!(fs::read_to_string(path("nothing")).unwrap(), "x");
        assert!(fs::symlink_metadata(path("to-nothing")).unwrap().is_symlink());

        let replaced = Output::open(&path("replaced")).unwrap();
        fs::write(path("other"), "of somebody else").unwrap();
        fs::rename(path("other"), path("replaced")).unwrap();
        drop(replaced);
        assert_eq!(fs::read_to_string(path("replaced")).unwrap(), "of somebody else");
    }
}
