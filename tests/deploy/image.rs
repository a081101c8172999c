//! The image: what the Dockerfile promises to the chart.

fn dockerfile() -> String {
    super::read(&super::root().join("deploy/Dockerfile"))
}

/// The last stage, instruction by instruction.
fn last_stage() -> Vec<String> {
    let text = dockerfile().replace("\\\n", " ");
    let lines: Vec<String> =
        text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let from = lines.iter().rposition(|l| l.starts_with("FROM ")).unwrap();
    lines[from..].to_vec()
}

#[test]
fn the_base_is_empty_and_the_user_is_nobody() {
    let stage = last_stage();
    assert_eq!(stage[0], "FROM scratch");
    assert!(stage.contains(&"USER 65534:65534".to_owned()));
    assert!(stage.contains(&"ENTRYPOINT [\"/usr/bin/weir\"]".to_owned()));
    for label in ["title", "description", "source", "licenses", "version", "revision"] {
        assert!(stage.iter().any(|l| l.starts_with("LABEL ") && l.contains(&format!("image.{label}="))), "{label}");
    }
}

/// Only well-known base images, and only packages of the distribution.
#[test]
fn nothing_is_fetched_from_elsewhere() {
    let text = dockerfile();
    let bases: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("FROM ")).collect();
    assert_eq!(bases, ["--platform=$BUILDPLATFORM debian:${DEBIAN} AS probes", "debian:${DEBIAN} AS agent", "scratch"]);
    for word in ["curl", "wget", "http://", "ADD "] {
        assert!(!text.contains(word), "{word}");
    }
}

/// The version of the image is that of the workspace and of the chart.
#[test]
fn versions_agree() {
    let workspace = super::read(&super::root().join("Cargo.toml"));
    let version = workspace.lines().find_map(|l| l.strip_prefix("version = \"")?.strip_suffix('"')).unwrap().to_owned();
    assert!(dockerfile().contains(&format!("ARG VERSION={version}\n")));
    let chart = super::yaml(&super::read(&super::chart::folder().join("Chart.yaml")));
    assert_eq!(chart["appVersion"], version.as_str());
    assert_eq!(chart["version"], version.as_str());
}
