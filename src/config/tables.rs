//! All tables of sources as they were read, and what is wrong with them together.
//!
//! Owns: how many there may be, and that none is there twice. Does not own: any key's range (`check_sources`).
//!
//! The one idea a newcomer lacks: the controller would leave out a second voice of one server, and whatever is beyond its
//! room, and the log would tell. Who can still read the file is better told by its lines.

use super::problem::Setting;
use super::section::Section;
use super::sources::{
    Broadcast, BroadcastClient, ManycastClient, ManycastServer, Peer, Pool, Server, Sources,
};
use super::values::host_address;
use crate::control::controller::SOURCES_MAX;

/// Tables of one kind, each with the place of its address, if it has one.
pub(super) type Placed<T> = Vec<(Option<Setting>, T)>;

/// All of them.
pub(super) struct Tables {
    pub servers: Placed<Server>,
    pub pools: Placed<Pool>,
    pub peers: Placed<Peer>,
    pub broadcasts: Placed<Broadcast>,
    pub broadcast_clients: Placed<BroadcastClient>,
    pub manycast_clients: Placed<ManycastClient>,
    pub manycast_servers: Placed<ManycastServer>,
}

impl Tables {
    /// Reports the first for which there is no room.
    pub fn report_surplus(&self, top: &mut Section<'_>) {
        let first = places(&self.servers)
            .chain(places(&self.pools))
            .chain(places(&self.peers))
            .chain(places(&self.broadcasts))
            .chain(places(&self.broadcast_clients))
            .chain(places(&self.manycast_clients))
            .chain(places(&self.manycast_servers))
            .nth(SOURCES_MAX);
        if let Some(setting) = first.flatten() {
            let allowed = format!("left out: there may be {SOURCES_MAX} tables of sources at most");
            top.report.invalid(setting.clone(), allowed);
        }
    }

    /// Reports every source that is there already. One server has one voice; which addresses a name leads to is seen when it
    /// is looked up.
    pub fn report_repeats(&self, top: &mut Section<'_>) {
        let servers = self.servers.iter().map(|(place, server)| (place, server));
        let pools = self.pools.iter().map(|(place, pool)| (place, &pool.server));
        let peers = self.peers.iter().map(|(place, peer)| (place, &peer.server));
        let asked = servers.chain(pools).chain(peers).filter_map(|(place, server)| {
            let (address, scope) = host_address(&server.address)?;
            Some(((&server.instance, address, scope, server.port), place.as_ref()?))
        });
        top.report_repeats(asked);
        report(top, &self.broadcasts, |one| (&one.instance, one.address, one.port, &one.interface));
        // What is heard at one place belongs to one table.
        report(top, &self.broadcast_clients, |one| (&one.instance, one.address, &one.interface));
        report(top, &self.manycast_clients, |one| (&one.instance, one.address, &one.interface));
        report(top, &self.manycast_servers, |one| (&one.instance, one.address, &one.interface));
    }

    /// Without their places.
    pub fn into_sources(self) -> Sources {
        Sources {
            servers: bare(self.servers),
            pools: bare(self.pools),
            peers: bare(self.peers),
            broadcasts: bare(self.broadcasts),
            broadcast_clients: bare(self.broadcast_clients),
            manycast_clients: bare(self.manycast_clients),
            manycast_servers: bare(self.manycast_servers),
        }
    }
}

fn places<T>(tables: &Placed<T>) -> impl Iterator<Item = Option<&Setting>> {
    tables.iter().map(|(place, _)| place.as_ref())
}

fn report<'t, T, K: Ord>(top: &mut Section<'_>, tables: &'t Placed<T>, identity: impl Fn(&'t T) -> K) {
    top.report_repeats(tables.iter().filter_map(|(place, table)| Some((identity(table), place.as_ref()?))));
}

fn bare<T>(tables: Placed<T>) -> Vec<T> {
    tables.into_iter().map(|(_, table)| table).collect()
}
