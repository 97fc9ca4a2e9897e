//! The kernel engine's program and its maps: loaded for one step, then read.
//!
//! Owns: the BPF objects, and turning buckets into histograms. Does not own: when it runs.
//!
//! The one idea a newcomer lacks: the program's histograms have the same buckets as hdrhistogram's with three significant
//! digits, so that nothing is rounded twice: the lowest value of a bucket stands for all of it.

use crate::load::engine::EngineError;
use crate::load::record::empty_histogram;
use crate::sys::memory::SharedWords;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{Program as Loadable, ProgramError};
use aya::{Ebpf, EbpfLoader};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use timeball_xdp_prog::load as object;
use timeball_xdp_prog::load::{
    BUCKET_BITS, BUCKETS_PER_VALUE, COUNTERS, Histogram, INTENDED_BITS, Progress, Settings,
    VALUES_PER_HISTOGRAM,
};
use zerocopy::{transmute, transmute_ref};

/// Sender and judge in one, and what they wrote.
pub(super) struct Program {
    load: OwnedFd,
    hear_skb: OwnedFd,
    #[cfg(test)]
    ask: OwnedFd,
    #[cfg(test)]
    hear: OwnedFd,
    progress: Array<MapData, [u8; size_of::<Progress>()]>,
    latencies: PerCpuArray<MapData, [u64; BUCKETS_PER_VALUE]>,
    counts: PerCpuArray<MapData, [u64; COUNTERS]>,
    kisses: HashMap<MapData, [u8; 4], u64>,
    outstanding: MapData,
    /// Entries of it.
    slots: usize,
}

impl Program {
    /// Makes empty maps and loads the program.
    pub(super) fn load(settings: &Settings) -> Result<Self, EngineError> {
        let bytes: &[u8; size_of::<Settings>()] = transmute_ref!(settings);
        // The object has no CO-RE relocations: without the kernel's BTF, loading takes 25 MB and 20 ms less.
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global(object::GLOBAL_SETTINGS, bytes, true)
            .map_max_entries(object::MAP_OUTSTANDING, 1 << settings.slot_bits)
            .load(object::OBJECT)
            .map_err(|error| in_words("make the maps of the load generator's program", &error))?;
        let Map::Array(outstanding) = take_map(&mut ebpf, object::MAP_OUTSTANDING)? else {
            return Err(EngineError("the built-in object's table of open requests is no array".into()));
        };
        Ok(Self {
            load: load(&mut ebpf, object::PROGRAM)?,
            hear_skb: load(&mut ebpf, object::PROGRAM_HEAR_SKB)?,
            #[cfg(test)]
            ask: load(&mut ebpf, object::PROGRAM_ASK)?,
            #[cfg(test)]
            hear: load(&mut ebpf, object::PROGRAM_HEAR)?,
            progress: take(&mut ebpf, object::MAP_PROGRESS)?,
            latencies: take(&mut ebpf, object::MAP_LATENCIES)?,
            counts: take(&mut ebpf, object::MAP_COUNTS)?,
            kisses: take(&mut ebpf, object::MAP_KISSES)?,
            outstanding,
            slots: 1 << settings.slot_bits,
        })
    }

    /// The program to run, and to attach as XDP program.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.load.as_fd()
    }

    /// The judge to attach to the traffic control hook.
    pub(super) fn hear_skb(&self) -> BorrowedFd<'_> {
        self.hear_skb.as_fd()
    }

    /// The sender.
    #[cfg(test)]
    pub(super) fn ask(&self) -> BorrowedFd<'_> {
        self.ask.as_fd()
    }

    /// The judge.
    #[cfg(test)]
    pub(super) fn hear(&self) -> BorrowedFd<'_> {
        self.hear.as_fd()
    }

    /// How far the sender is.
    pub(super) fn progress(&self) -> Result<Progress, EngineError> {
        self.progress.get(&0, 0).map(|bytes| transmute!(bytes)).map_err(unreadable)
    }

    /// Puts the sender somewhere else.
    #[cfg(test)]
    pub(super) fn set_progress(&mut self, progress: Progress) {
        let bytes: [u8; size_of::<Progress>()] = transmute!(progress);
        self.progress.set(0, bytes, 0).expect("the map has this entry");
    }

    /// What the judge counted: per flaw, then per `Counter`.
    pub(super) fn counts(&self) -> Result<[u64; COUNTERS], EngineError> {
        let mut sums = [0; COUNTERS];
        for one_cpu in self.counts.get(&0, 0).map_err(unreadable)?.iter() {
            for (sum, count) in sums.iter_mut().zip(one_cpu) {
                *sum += count;
            }
        }
        Ok(sums)
    }

    /// Kiss codes and how often each came.
    pub(super) fn kisses(&self) -> Result<Vec<([u8; 4], u64)>, EngineError> {
        let mut kisses = self.kisses.iter().collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        kisses.sort_unstable();
        Ok(kisses)
    }

    /// How many of the newest `newest` requests were due at `from` (nanoseconds after the start) or later and have no
    /// reply. It looks no further than to the first open request that is older. The table is read where it lies: a system
    /// call for each of its up to 16 million entries would take ten seconds.
    pub(super) fn open_since(&self, from: u64, newest: u64) -> Result<u64, EngineError> {
        let table = SharedWords::of_fd(self.outstanding.fd().as_fd(), self.slots)
            .map_err(|error| in_words("map the table of open requests", &error))?;
        let (sent, slots) = (self.progress()?.sent, self.slots as u64);
        let mut open = 0;
        for sequence in (sent.saturating_sub(newest.min(slots))..sent).rev() {
            let Some(entry) = table.get((sequence % slots) as usize) else { break };
            match (entry & ((1 << INTENDED_BITS) - 1)).checked_sub(1) {
                None => {}
                Some(intended) if intended < from => break,
                Some(_) => open += 1,
            }
        }
        Ok(open)
    }

    /// A histogram, summed over CPUs.
    pub(super) fn histogram(&self, which: Histogram) -> Result<hdrhistogram::Histogram<u64>, EngineError> {
        let mut histogram = empty_histogram();
        for part in 0..VALUES_PER_HISTOGRAM {
            let key = which as u32 * VALUES_PER_HISTOGRAM + part;
            let per_cpu = self.latencies.get(&key, 0).map_err(unreadable)?;
            for at in 0..BUCKETS_PER_VALUE {
                let count: u64 = per_cpu.iter().map(|buckets| buckets[at]).sum();
                if count > 0 {
                    let value = lowest_of_bucket(u64::from(part) * BUCKETS_PER_VALUE as u64 + at as u64);
                    // The program counts nothing above LATENCY_MAX, which the histogram holds.
                    let _ = histogram.record_n(value, count);
                }
            }
        }
        Ok(histogram)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

/// The smallest value, in nanoseconds, that is counted in a bucket.
pub(super) const fn lowest_of_bucket(bucket: u64) -> u64 {
    let per_octave = 1 << (BUCKET_BITS - 1);
    if bucket < 2 * per_octave {
        return bucket;
    }
    let shift = bucket / per_octave - 1;
    (bucket - shift * per_octave) << shift
}

/// The map of that name, out of the loaded object and as its Rust type.
fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, EngineError> {
    T::try_from(take_map(ebpf, name)?)
        .map_err(|error| EngineError(format!("the built-in object's map {name}: {error}")))
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map, EngineError> {
    ebpf.take_map(name).ok_or_else(|| EngineError(format!("the built-in object has no map {name}")))
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, EngineError> {
    let loaded = match ebpf.program_mut(name) {
        Some(Loadable::Xdp(program)) => program.load().and_then(move |()| program.fd()),
        Some(Loadable::SchedClassifier(program)) => program.load().and_then(move |()| program.fd()),
        _ => return Err(EngineError(format!("the built-in object has no program {name}"))),
    };
    let fd = loaded.map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            // The verifier's last lines say what it did not like.
            let log = verifier_log.to_string();
            let last: Vec<&str> = log.lines().rev().take(4).collect();
            EngineError(format!("the kernel refused the program {name}: {io_error}; {}", last.join("; ")))
        }
        other => in_words(&format!("load the program {name}"), &other),
    })?;
    fd.as_fd().try_clone_to_owned().map_err(|error| in_words("duplicate a descriptor", &error))
}

fn unreadable(error: MapError) -> EngineError {
    in_words("read what the load generator's program counted", &error)
}

/// aya's own text for a failed system call leaves the cause to `source()`.
fn in_words(what: &str, error: &(dyn std::error::Error + 'static)) -> EngineError {
    let mut text = format!("cannot {what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    EngineError(text)
}
