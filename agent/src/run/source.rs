//! Where cluster objects come from, as one stream of changes: a Kubernetes API server, or manifests that are re-read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::mpsc;

use crate::cluster::candidates::Files;
use crate::cluster::change::{Change, Reading};
use crate::cluster::manifests::{Keep, Severity, Update, Watch};
use crate::cluster::watch::{self, Lookups, Pods};

/// How often manifests are looked at.
const POLL: Duration = Duration::from_millis(250);
/// Changes under way from manifests to the engine.
const CHANGES: usize = 1024;

/// Where cluster objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files and folders.
    Manifests(Vec<PathBuf>),
    /// An API server.
    Kubernetes {
        /// How to reach it.
        config: Box<kube::Config>,
        /// What is watched there.
        settings: Box<watch::Settings>,
    },
}

/// A source that runs. Dropping it ends it.
pub(super) enum Running {
    Manifests(mpsc::Receiver<Change>),
    Kubernetes(watch::Source),
}

impl Source {
    /// Whether peers that are not watched are looked up by address.
    #[must_use]
    pub fn looks_up(&self) -> bool {
        match self {
            Self::Manifests(_) => false,
            Self::Kubernetes { settings, .. } => settings.pods != Pods::All,
        }
    }

    /// The API server that is followed.
    pub(super) fn cluster(&self) -> Option<&kube::Config> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes { config, .. } => Some(config),
        }
    }

    /// Reads manifests a first time, or starts to follow the API server, which need not be there yet.
    pub(super) fn start(self) -> anyhow::Result<Running> {
        Ok(match self {
            Self::Manifests(paths) => {
                let (watch, first) = Watch::new(paths, Keep::Object)?;
                require_objects(&first)?;
                Running::Manifests(follow(watch, first))
            }
            Self::Kubernetes { config, settings } => Running::Kubernetes(
                watch::start(*config, *settings)
                    .context("cannot use the API server's certificates or credentials as they are configured")?,
            ),
        })
    }
}

/// Broken documents beside good ones are told of and left out. Where there is nothing else, nothing can be judged.
fn require_objects(first: &Update) -> anyhow::Result<()> {
    if !first.apply.is_empty() {
        return Ok(());
    }
    let mut broken = first.problems.iter().filter(|p| p.severity == Severity::Error);
    let Some(problem) = broken.next() else { return Ok(()) };
    let more = broken.count();
    let more = if more > 0 { format!(" (and {more} more like it)") } else { String::new() };
    Err(anyhow!("no object could be read: {problem}{more}; mend the file, or name others with --manifests"))
}

impl Running {
    /// Asks for peers by address.
    pub fn lookups(&self) -> Option<Lookups> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => Some(source.lookups.clone()),
        }
    }

    /// What there is and what changes.
    pub fn changes(&mut self) -> &mut mpsc::Receiver<Change> {
        match self {
            Self::Manifests(changes) => changes,
            Self::Kubernetes(source) => &mut source.changes,
        }
    }
}

/// How to reach the cluster: by this kubeconfig, else by the environment's (`KUBECONFIG`), else as a pod, else by the home
/// folder's kubeconfig.
///
/// # Errors
/// When there is none, or it can't be used. Whether the API server answers is not asked.
pub async fn connection(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Config> {
    let options = KubeConfigOptions::default();
    if let Some(path) = kubeconfig {
        let unusable = |cause: String| anyhow!("cannot use the kubeconfig {}: {cause}", path.display());
        let read = Kubeconfig::read_from(path).map_err(|e| unusable(chain(&e)))?;
        return kube::Config::from_custom_kubeconfig(read, &options).await.map_err(|e| unusable(chain(&e)));
    }
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    if set("KUBERNETES_SERVICE_HOST") && !set("KUBECONFIG") {
        return kube::Config::incluster()
            .map_err(|e| anyhow!("cannot use this pod's service account: {}; is its token mounted?", chain(&e)));
    }
    match kube::Config::from_kubeconfig(&options).await {
        Ok(config) => Ok(config),
        Err(error) => bail!(
            "no cluster to follow: this is no pod, and {}; give --kubeconfig FILE, or --manifests PATH for objects from \
             files",
            chain(&error)
        ),
    }
}

/// An error with its causes, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Looks at the manifests from a thread of its own: parsing thousands of objects must not hold up the engine.
fn follow(mut manifests: Watch, first: Update) -> mpsc::Receiver<Change> {
    let (send, changes) = mpsc::channel(CHANGES);
    std::thread::spawn(move || {
        let all = |update: Update| said(update).into_iter().all(|change| send.blocking_send(change).is_ok());
        if !all(first) || send.blocking_send(Change::Synced).is_err() {
            return;
        }
        while !send.is_closed() {
            std::thread::sleep(POLL);
            if manifests.poll().is_some_and(|update| !all(update)) {
                return;
            }
        }
    });
    changes
}

/// Follows the files of candidates like manifests; none where there are no paths.
pub(super) fn candidates(paths: Vec<PathBuf>) -> anyhow::Result<Option<mpsc::Receiver<Change>>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let (mut watch, first) = Watch::new(paths, Keep::Object)?;
    let (send, changes) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut files = Files::default();
        let mut next = Some(first);
        while !send.is_closed() {
            if let Some(update) = next
                && send.blocking_send(Change::Candidates(files.update(update))).is_err()
            {
                return;
            }
            std::thread::sleep(POLL);
            next = watch.poll();
        }
    });
    Ok(Some(changes))
}

fn said(update: Update) -> Vec<Change> {
    let Update { apply, delete, problems, ignored, files } = update;
    let deleted = delete.into_iter().map(Change::Delete);
    let applied = apply.into_iter().map(|f| Change::Apply { object: f.object, origin: f.origin });
    let read = Change::Read(Reading { problems, ignored, files });
    deleted.chain(applied).chain([read]).collect()
}
