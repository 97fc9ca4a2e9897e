//! Where an instance is, and doing something there.
//!
//! Owns: the network namespaces of all instances, opened before anything else is touched. Does not own: what is made in them.
//!
//! The one idea a newcomer lacks: only making a socket, and asking the kernel about interfaces, has to happen in the right
//! network; what was made stays there. So the control thread goes in for a moment, and everything else (workers, timers, the
//! control socket, metrics) knows instances by number only.

use super::error::{ServeError, system};
use crate::config::{Config, Instance};
use crate::control::InstanceId;
use crate::datapath::interface::View;
use crate::sys::namespace::Namespace;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// One instance's network.
#[derive(Debug)]
pub struct Place {
    /// Its number.
    pub id: InstanceId,
    /// Its name.
    pub name: Arc<str>,
    is_one_of_several: bool,
    configured: Instance,
    /// `None`: where we are.
    namespace: Option<Namespace>,
}

impl Place {
    /// Those of a configuration, in the order of their numbers.
    ///
    /// # Errors
    /// One is not there, may not be entered, or is that of another instance.
    pub fn open_all(config: &Config) -> Result<Vec<Arc<Self>>, ServeError> {
        let instances = config.instances();
        let several = instances.len() > 1;
        let mut places = Vec::new();
        let mut taken = BTreeMap::new();
        for (number, configured) in (0..).zip(instances) {
            let namespace = configured.netns.as_deref().map(|name| open(&configured, name)).transpose()?;
            // A VRF shares a network namespace, without sharing the network.
            if several && configured.vrf.is_none() {
                let identity = namespace.as_ref().map_or_else(Namespace::own_identity, Namespace::identity);
                let identity = identity.map_err(system("network namespace"))?;
                if let Some(other) = taken.insert(identity, configured.name.clone()) {
                    return Err(ServeError::SamePlace { instance: configured.name, other });
                }
            }
            places.push(Arc::new(Self {
                id: InstanceId(number),
                name: configured.name.as_str().into(),
                is_one_of_several: several,
                configured,
                namespace,
            }));
        }
        Ok(places)
    }

    /// Does something there, on this thread.
    ///
    /// # Errors
    /// The thread may not go there; nothing was done.
    pub fn inside<T>(&self, what: impl FnOnce() -> T) -> io::Result<T> {
        match &self.namespace {
            None => Ok(what()),
            Some(namespace) => namespace.inside(what),
        }
    }

    /// Is its network namespace still the one of that name? Ours lives on without a name, and with it all that we serve there.
    #[must_use]
    pub fn has_its_name(&self) -> bool {
        match (&self.namespace, &self.configured.netns) {
            (Some(namespace), Some(name)) => namespace.is_still(name),
            _ => true,
        }
    }

    /// The device that its sockets are tied to.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.configured.vrf.as_deref()
    }

    /// The index of that device, by which the kernel knows a socket's; one that is made anew has another.
    #[must_use]
    pub fn device_index(&self, view: &View) -> Option<u32> {
        view.interface_named(self.device()?).map(|device| device.ifindex)
    }

    /// The part of its network namespace that is its network.
    #[must_use]
    pub fn part_of<'v>(&self, view: &'v View) -> Cow<'v, View> {
        view.of_vrf(self.device())
    }

    /// Is it in the network namespace that we were started in, where there may be several: VRFs, and what belongs to none?
    #[must_use]
    pub const fn is_one_of_ours(&self) -> bool {
        self.is_one_of_several && self.namespace.is_none()
    }

    /// Its name, if there is another one to tell it from.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        self.is_one_of_several.then_some(&*self.name)
    }

    /// For messages: ` in instance red`, or nothing where there is but one.
    #[must_use]
    pub fn suffix(&self) -> String {
        self.label().map_or_else(String::new, |name| format!(" in instance {name}"))
    }

    /// In words: `netns red`, `vrf blue`, `own`.
    #[must_use]
    pub fn network(&self) -> String {
        match (&self.configured.netns, &self.configured.vrf) {
            (Some(name), _) => format!("netns {name}"),
            (None, Some(name)) => format!("vrf {name}"),
            (None, None) => "own".to_owned(),
        }
    }

    /// May interfaces of its network namespace have VLAN interfaces in that of another instance?
    #[must_use]
    pub const fn may_have_vlans_elsewhere(&self) -> bool {
        self.is_one_of_several
    }

    /// Is the VRF there?
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, view: &View) -> Result<(), ServeError> {
        let Some(vrf) = self.device() else { return Ok(()) };
        if view.vrfs().any(|device| device.name == vrf) {
            return Ok(());
        }
        let existing: Vec<&str> = view.vrfs().map(|device| device.name.as_str()).collect();
        Err(ServeError::NoSuchVrf { written: self.configured.written.shown(), existing: listed(&existing) })
    }
}

fn open(configured: &Instance, name: &str) -> Result<Namespace, ServeError> {
    Namespace::open(name).map_err(|error| {
        let written = configured.written.shown();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                let existing = Namespace::names();
                let existing: Vec<&str> = existing.iter().map(String::as_str).collect();
                ServeError::NoSuchNamespace { written, existing: listed(&existing) }
            }
            Some(libc::EINVAL | libc::ENXIO) => ServeError::NotANamespace { written },
            Some(libc::EPERM | libc::EACCES) => ServeError::NamespaceForbidden { written },
            _ => ServeError::Namespace { written, error },
        }
    })
}

fn listed(existing: &[&str]) -> String {
    if existing.is_empty() { "none".to_owned() } else { existing.join(", ") }
}
