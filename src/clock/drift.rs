//! The drift file: how fast the clock must be made to run, over restarts.
//!
//! One line, parts per million and how far they may be off. > 0: made to run faster, as everywhere here and in ntpd's
//! drift file. (chronyd's looks the same and has the other sign: it says how fast the clock is.)

use crate::time::Ppm;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a clock can be made to run faster or slower by (RFC 5905 A.5.5.6).
const PPM_MAX: f64 = 500.0;
/// How far off a kept frequency is taken to be: a day's temperature.
const SKEW_PPM: f64 = 1.0;

/// A drift file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriftFile(PathBuf);

impl DriftFile {
    /// At this path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it says; `None`: it is not there yet.
    ///
    /// # Errors
    /// It cannot be read, or it says nothing that could be a frequency error.
    pub fn read(&self) -> io::Result<Option<Ppm>> {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let ppm = text.split_ascii_whitespace().next().and_then(|word| word.parse::<f64>().ok());
        match ppm.filter(|ppm| ppm.abs() <= PPM_MAX) {
            Some(ppm) => Ok(Some(Ppm::from_ppm(ppm))),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("must begin with parts per million, -{PPM_MAX} to {PPM_MAX}"),
            )),
        }
    }

    /// Replaces it whole: whoever reads it meanwhile, or after a crash, reads the old one or the new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, frequency: Ppm) -> io::Result<()> {
        let mut beside = self.0.clone().into_os_string();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        fs::write(&beside, format!("{:20.6} {SKEW_PPM:20.6}\n", frequency.ppm()))?;
        fs::rename(&beside, &self.0).inspect_err(|_| _ = fs::remove_file(&beside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn what_is_written_reads_back_and_nonsense_is_refused() {
        let folder = TempDir::new().unwrap();
        let file = DriftFile::new(folder.path().join("drift"));
        assert_eq!(file.read().unwrap(), None);
        for ppm in [0.0, -12.345_678, 499.9] {
            file.write(Ppm::from_ppm(ppm)).unwrap();
            assert!((file.read().unwrap().unwrap().ppm() - ppm).abs() < 1e-3);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        for text in ["", "\n", "fast", "nan 1", "inf", "500.1", "-1e9 0.1"] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(file.read().unwrap_err().kind(), io::ErrorKind::InvalidData, "{text:?}");
        }
        // As other daemons write it.
        fs::write(file.path(), "            -2.204000             0.032000\n").unwrap();
        assert!((file.read().unwrap().unwrap().ppm() + 2.204).abs() < 1e-3);
        assert!(DriftFile::new(folder.path().join("none/drift")).write(Ppm::ZERO).is_err());
    }
}
