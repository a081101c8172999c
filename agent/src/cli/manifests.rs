//! What the offline commands read: manifests to judge, the cluster they are meant for, own flows, an engine profile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use weir_engine::check::Model;
use weir_engine::cluster::{Object, Origin};
use weir_engine::policy::Profile;
use weir_engine::requirement::Catalogue;

use super::progress;
use crate::cluster::manifests::{self, Manifests};
use crate::outputs::text::clean;
use crate::report::Inputs;

/// Where the objects come from.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// Manifests to judge: files, folders, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "PATH", num_args = 1.., required = true)]
    pub files: Vec<PathBuf>,

    /// Manifests of the cluster that they are meant for, such as `kubectl get -A -o yaml` prints
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub cluster: Vec<PathBuf>,

    #[command(flatten)]
    pub reading: Reading,
}

/// How objects are read.
#[derive(Clone, Debug, Args)]
pub struct Reading {
    /// Catalogue file with flows to add, or to replace by id
    #[arg(long, value_name = "FILE")]
    flows: Vec<PathBuf>,

    /// Whose reading decides where engines differ: spec, calico, cilium, ovn
    #[arg(long, value_name = "PROFILE", default_value_t = Profile::Spec)]
    pub engine: Profile,
}

/// Objects and where each was read.
pub type Objects = Vec<(Object, Origin)>;

/// Objects with what was wrong with their files.
pub struct Loaded {
    /// The objects and all that follows from them.
    pub model: Model,
    /// What was read, and what could not be.
    pub inputs: Inputs,
}

impl Source {
    /// Reads everything; what cannot be read is told on standard error and kept in [`Inputs`].
    ///
    /// # Errors
    /// When a named path or a catalogue file cannot be read.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        one_standard_input(self.files.iter().chain(&self.cluster))?;
        let mut inputs = Inputs::default();
        // What is to be judged replaces what the cluster has under the same name.
        let mut objects = read(&self.cluster, &mut inputs)?;
        objects.extend(read(&self.files, &mut inputs)?);
        let model = Model::new(objects, self.reading.catalogue()?, self.reading.engine);
        if let Some((name, error)) = model.resolver.refused().first() {
            bail!("ConfigMap {name} is no catalogue of flows: {error}");
        }
        Ok(Loaded { model, inputs })
    }

    /// What -f names, what --cluster names, and whether any of it could not be read.
    ///
    /// # Errors
    /// When a named path cannot be read.
    pub fn parts(&self) -> anyhow::Result<(Objects, Objects, bool)> {
        one_standard_input(self.files.iter().chain(&self.cluster))?;
        let mut inputs = Inputs::default();
        let files = read(&self.files, &mut inputs)?;
        let cluster = read(&self.cluster, &mut inputs)?;
        let incomplete = inputs.problems.iter().any(|p| p.severity == manifests::Severity::Error);
        Ok((files, cluster, incomplete))
    }

    /// The arguments as a shell would read them.
    #[must_use]
    pub fn arguments(&self) -> String {
        let mut words = vec!["-f".to_owned()];
        words.extend(self.files.iter().map(|p| quote(p)));
        if !self.cluster.is_empty() {
            words.push("--cluster".to_owned());
            words.extend(self.cluster.iter().map(|p| quote(p)));
        }
        for file in &self.reading.flows {
            words.extend(["--flows".to_owned(), quote(file)]);
        }
        if self.reading.engine != Profile::Spec {
            words.extend(["--engine".to_owned(), self.reading.engine.to_string()]);
        }
        words.join(" ")
    }
}

impl Reading {
    /// The built-in catalogue with the user's flows.
    ///
    /// # Errors
    /// When a file cannot be read or is not a catalogue.
    pub fn catalogue(&self) -> anyhow::Result<Catalogue> {
        own_flows(&self.flows).map(|(catalogue, _)| catalogue)
    }
}

/// The built-in catalogue with the user's flows, and the texts of their files.
///
/// # Errors
/// When a file cannot be read or is not a catalogue: which, the line, what is wrong and what is allowed.
pub fn own_flows(files: &[PathBuf]) -> anyhow::Result<(Catalogue, Vec<String>)> {
    let (mut catalogue, mut texts) = (Catalogue::built_in(), Vec::new());
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read flows from {}", file.display()))?;
        catalogue.add(&text).with_context(|| format!("{} is no catalogue of flows", file.display()))?;
        texts.push(text);
    }
    Ok((catalogue, texts))
}

/// Standard input has one reader.
///
/// # Errors
/// When - is named twice.
pub fn one_standard_input<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    if paths.into_iter().filter(|p| p.as_os_str() == "-").count() > 1 {
        bail!("standard input can be read only once: name - only once");
    }
    Ok(())
}

/// Reads manifests, and tells of what is wrong with them on standard error.
///
/// # Errors
/// When one of the paths cannot be read.
pub fn read(paths: &[PathBuf], inputs: &mut Inputs) -> anyhow::Result<Vec<(Object, Origin)>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let bar = progress::working("reading manifests");
    let mut manifests: Manifests = manifests::load(paths)?;
    bar.finish_and_clear();
    for problem in &manifests.problems {
        anstream::eprintln!("weir: {}", clean(&problem.to_string()));
    }
    if manifests.problems_left_out > 0 {
        anstream::eprintln!("weir: and {} more problems", manifests.problems_left_out);
    }
    inputs.add(&mut manifests);
    Ok(manifests.objects.into_iter().map(|found| (found.object, found.origin)).collect())
}

/// A path as a shell reads it back.
pub fn quote(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
