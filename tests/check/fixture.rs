//! Fixtures: objects, policies of several states, and per flow and state the verdict that is right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One `expected*.yaml`.
#[derive(Debug, Deserialize)]
pub struct Fixture {
    #[serde(skip)]
    pub dir: PathBuf,
    #[serde(skip)]
    pub file: String,
    pub states: BTreeMap<String, State>,
    pub flows: Vec<Flow>,
}

#[derive(Debug, Deserialize)]
pub struct State {
    pub policies: Vec<String>,
    #[serde(default = "cluster")]
    pub cluster: String,
}

#[derive(Debug, Deserialize)]
pub struct Flow {
    pub id: String,
    pub catalog: Option<String>,
    pub from: End,
    pub to: End,
    pub protocol: String,
    pub port: u16,
    pub results: BTreeMap<String, Expected>,
}

#[derive(Debug, Deserialize)]
pub struct End {
    pub pod: Option<String>,
    pub node: Option<String>,
    pub ip: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Expected {
    pub verdict: String,
    pub egress: String,
    pub ingress: String,
    #[serde(default)]
    pub egress_isolated_by: Vec<String>,
    #[serde(default)]
    pub ingress_isolated_by: Vec<String>,
    #[serde(default)]
    pub egress_allowed_by: Vec<String>,
    #[serde(default)]
    pub ingress_allowed_by: Vec<String>,
}

fn cluster() -> String {
    "cluster.yaml".to_owned()
}

/// Every fixture that comes with the source, and those kept beside it where they are there.
pub fn all() -> Vec<Fixture> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let shared = std::env::var_os("WEIR_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
        .join("fixtures");
    let mut files = Vec::new();
    find(&own, &mut files);
    for name in ["istio-upstream", "kyma-managed"] {
        if shared.join(name).is_dir() {
            find(&shared.join(name), &mut files);
        } else {
            println!("skipped: no fixture {name}; set WEIR_SHARED to the folder with fixtures/{name}");
        }
    }
    files.sort();
    assert!(!files.is_empty(), "no expected*.yaml below {}", own.display());
    files.iter().map(|f| load(f)).collect()
}

fn find(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder of fixtures") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() {
            find(&path, files);
        } else if name.starts_with("expected") && name.ends_with(".yaml") {
            files.push(path);
        }
    }
}

fn load(file: &Path) -> Fixture {
    let text = std::fs::read_to_string(file).expect("a fixture");
    let mut fixture: Fixture = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    fixture.dir = file.parent().expect("a folder").to_owned();
    let folder = fixture.dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    fixture.file = format!("{folder}/{}", file.file_name().and_then(|n| n.to_str()).unwrap_or_default());
    fixture
}
