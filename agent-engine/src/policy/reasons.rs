//! The policies that do not admit, with their misses: found when they are read.
//!
//! Most decisions are only asked whether they admit. What the reasons depend on is kept as it stood when the decision was
//! made, so reading them later gives the same.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decide::{Peers, Query};
use super::decision::Selecting;
use super::group::Group;
use super::miss;
use super::peer::{Far, FarKind, Slots};
use super::profile::Profile;
use super::program::Program;
use crate::cluster::{Cluster, Pod};
use crate::words::{Name, Protocol};

/// The policies that select the pod, nearest miss first; of more than a thousand, the nearest. Reads like a slice. A copy shares
/// what was found.
#[derive(Clone)]
pub struct Reasons(Option<Arc<Shared>>);

struct Shared {
    found: OnceLock<Box<[Selecting]>>,
    scene: Option<Scene>,
    /// All policies, by name, where they are known apart from what was found.
    names: Option<Arc<[Name]>>,
}

/// What a flow between two pods looked like when it was judged.
#[derive(Clone)]
pub(super) struct Scene {
    pub program: Arc<Program>,
    pub profile: Profile,
    /// The other end.
    pub far: Arc<Group>,
    pub addresses: Addresses,
    pub protocol: Protocol,
    pub port: u16,
    /// What was dialled and whose address that is.
    pub dialled: Option<(u16, Name)>,
    pub destination: (Arc<Pod>, Arc<Group>),
}

/// Addresses of the other end.
#[derive(Clone)]
pub(super) enum Addresses {
    One(IpAddr),
    /// Those of the pod whose bit is set.
    Of(Arc<Pod>, u64),
}

impl Reasons {
    /// The nearest of the policies, which are all of these.
    pub(super) fn found(selecting: Vec<Selecting>, names: Option<Arc<[Name]>>) -> Self {
        Self(Some(Arc::new(Shared { found: OnceLock::from(selecting.into_boxed_slice()), scene: None, names })))
    }

    pub(super) fn later(scene: Scene) -> Self {
        let names = Some(scene.program.names.clone());
        Self(Some(Arc::new(Shared { found: OnceLock::new(), scene: Some(scene), names })))
    }

    /// Without reasons, for those who do not ask.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// The policies alone, by name; costs less than their misses.
    pub(super) fn policies(&self) -> Vec<&Name> {
        let found = self.0.as_deref().and_then(|shared| shared.found.get());
        match self.names() {
            Some(names) if found.is_none_or(|found| found.len() < names.len()) => names.iter().collect(),
            _ => self.iter().map(|s| &s.policy).collect(),
        }
    }

    /// All policies, by name, where they are known without looking for misses.
    pub(super) fn names(&self) -> Option<&[Name]> {
        self.0.as_deref()?.names.as_deref()
    }
}

impl Scene {
    fn read(&self) -> Box<[Selecting]> {
        let slots = match &self.addresses {
            Addresses::One(address) => Slots::known(std::slice::from_ref(address)),
            Addresses::Of(pod, mask) => Slots::Known { addresses: &pod.addresses, mask: *mask },
        };
        let far = Far { kind: FarKind::Pod { pod: None, group: &self.far }, slots };
        let (pod, group) = &self.destination;
        let query = Query {
            protocol: self.protocol,
            port: self.port,
            dialled: self.dialled.as_ref().map(|(port, service)| (*port, service)),
            pod: Some((pod, group)),
        };
        // Peers of NetworkPolicies ask the cluster only about ends whose address is not known.
        let peers = Peers { profile: self.profile, cluster: &Cluster::default() };
        miss::rank(&peers, &self.program, &far, &query).into()
    }
}

impl Deref for Reasons {
    type Target = [Selecting];

    fn deref(&self) -> &[Selecting] {
        let Some(shared) = self.0.as_deref() else { return &[] };
        shared.found.get_or_init(|| shared.scene.as_ref().map(Scene::read).unwrap_or_default())
    }
}

impl<'a> IntoIterator for &'a Reasons {
    type Item = &'a Selecting;
    type IntoIter = std::slice::Iter<'a, Selecting>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Selecting> for Reasons {
    fn from_iter<I: IntoIterator<Item = Selecting>>(iter: I) -> Self {
        Self::found(iter.into_iter().collect(), None)
    }
}

impl fmt::Debug for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Reasons {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Reasons {}

impl Serialize for Reasons {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.deref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Reasons {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Selecting>::deserialize(deserializer).map(|selecting| Self::found(selecting, None))
    }
}
