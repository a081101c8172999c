//! The plain manifests are the rendered chart, and what Kubernetes would read of them is all there is in them.

use std::process::Command;

use super::chart::{NAMESPACE, render};

const HEAD: &str = "# Rendered from deploy/helm/weir. Not to be edited: change the chart, then\n\
                    # SNAPSHOTS=overwrite cargo test -p weir-tests --test deploy manifests\n";

/// What `kubectl apply -k deploy/manifests` applies, but for the namespace.
#[test]
fn the_base_is_the_rendered_chart() {
    let documents = render("", "kustomize");
    assert!(documents.len() >= 8, "{documents:?}");
    snapbox::assert_data_eq!(joined(documents), snapbox::Data::read_from(&path("manifests/weir.yaml"), None).raw());
}

/// `kubectl apply -k deploy/monitoring` adds the objects of the Prometheus Operator.
#[test]
fn monitoring_is_the_rendered_chart() {
    let over = "{podMonitor: {enabled: true}, prometheusRule: {enabled: true}}";
    let base = render("", "kustomize");
    let added: Vec<_> = render(over, "kustomize").into_iter().filter(|d| !base.contains(d)).collect();
    let files: Vec<&str> = added.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(files, ["podmonitor.yaml", "prometheusrule.yaml"]);
    snapbox::assert_data_eq!(joined(added), snapbox::Data::read_from(&path("monitoring/monitoring.yaml"), None).raw());
}

#[test]
fn the_kustomizations_name_what_is_there() {
    for (folder, resources) in
        [("manifests", vec!["namespace.yaml", "weir.yaml"]), ("monitoring", vec!["../manifests", "monitoring.yaml"])]
    {
        let kustomization = super::yaml(&super::read(&path(folder).join("kustomization.yaml")));
        let named: Vec<&str> =
            kustomization["resources"].as_array().unwrap().iter().filter_map(|r| r.as_str()).collect();
        assert_eq!(named, resources, "{folder}");
        for resource in named {
            assert!(path(folder).join(resource).exists(), "{resource}");
        }
    }
    let namespace = super::yaml(&super::read(&path("manifests/namespace.yaml")));
    assert_eq!(namespace["metadata"]["name"], NAMESPACE);
    // The DaemonSet adds capabilities and mounts a host path, which the other levels refuse.
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
}

/// kustomize itself has rules of its own: an overlay may not lie inside its base.
#[test]
fn kustomize_builds_both() {
    for (folder, kinds) in [("manifests", 11), ("monitoring", 13)] {
        let Ok(output) = Command::new("kubectl").arg("kustomize").arg(path(folder)).output() else {
            eprintln!("skipped: kubectl is not installed");
            return;
        };
        let told = String::from_utf8_lossy(&output.stderr);
        // kubectl's before 1.21 takes no folder as a resource.
        if told.contains("must be a file (got d=") {
            println!("SKIPPED: this kubectl's kustomize takes no folder as a resource: {folder}");
            continue;
        }
        assert!(output.status.success(), "{told}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().filter(|l| l.starts_with("kind: ")).count(), kinds, "{text}");
    }
}

fn joined(documents: Vec<(String, String)>) -> String {
    let texts: Vec<String> = documents.into_iter().map(|(_, text)| text).collect();
    format!("{HEAD}{}", texts.join("---\n"))
}

fn path(name: &str) -> std::path::PathBuf {
    super::root().join("deploy").join(name)
}
