//! Edits on disk, and what they turn into.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Keep, Update, Watch};

fn namespace(name: &str, label: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{v: \"{label}\"}}\n")
}

fn watch(path: &Path) -> (Watch, Update) {
    Watch::new(vec![path.to_owned()], Keep::Object).unwrap()
}

/// A change is taken in once it has settled: in the second poll that sees it.
fn settled(watch: &mut Watch) -> Option<Update> {
    let first = watch.poll();
    watch.poll().or(first)
}

fn shown(update: &Update) -> (Vec<String>, Vec<String>) {
    let name = |k: &weir_engine::cluster::Key| k.name.to_string();
    (update.apply.iter().map(|f| name(&f.key)).collect(), update.delete.iter().map(name).collect())
}

fn names(apply: &[&str], delete: &[&str]) -> (Vec<String>, Vec<String>) {
    let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    (own(apply), own(delete))
}

#[test]
fn only_what_changed_is_applied_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, format!("{}---\n{}", namespace("a", "1"), namespace("b", "1"))).unwrap();
    let (mut watch, first) = watch(folder.path());
    assert_eq!(shown(&first), names(&["a", "b"], &[]));
    assert!(settled(&mut watch).is_none());

    fs::write(&file, format!("# moved down\n{}---\n{}", namespace("a", "1"), namespace("b", "2"))).unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&["b"], &[]));

    fs::write(&file, namespace("b", "2")).unwrap();
    fs::write(folder.path().join("c.yaml"), namespace("c", "1")).unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&["c"], &["a"]));

    fs::remove_file(&file).unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&[], &["b"]));
    assert!(settled(&mut watch).is_none());
}

#[test]
fn a_file_caught_while_it_is_written_waits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, namespace("a", "1")).unwrap();
    let (mut watch, _) = watch(folder.path());
    fs::write(&file, "").unwrap();
    assert!(watch.poll().is_none(), "seen empty, once");
    fs::write(&file, namespace("a", "22")).unwrap();
    assert!(watch.poll().is_none(), "seen full, once");
    assert_eq!(shown(&watch.poll().unwrap()), names(&["a"], &[]));
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, format!("{}---\n{}", namespace("a", "1"), namespace("b", "1"))).unwrap();
    let (mut watch, _) = watch(folder.path());

    fs::write(&file, format!("{}---\nkind: [\n", namespace("a", "2"))).unwrap();
    let update = settled(&mut watch).unwrap();
    assert_eq!(shown(&update), names(&["a"], &[]), "what can be read is taken, what can't is kept");
    let text: Vec<String> = update.problems.iter().map(ToString::to_string).collect();
    assert!(text[0].contains("a.yaml:8: document 2"), "{text:?}");
    assert!(text[1].contains("Namespace b stay in force"), "{text:?}");

    fs::write(&file, "kind: [").unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&[], &[]), "still kept");

    fs::write(&file, namespace("a", "2")).unwrap();
    let update = settled(&mut watch).unwrap();
    assert_eq!((shown(&update), update.problems.len()), (names(&[], &["b"]), 0));

    fs::write(&file, "kind: [").unwrap();
    settled(&mut watch).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&[], &["a"]), "removing the file removes what it kept");
}

#[test]
fn a_mounted_config_map_is_followed_through_its_swapped_link() {
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(mount.path().join(name)).unwrap();
        fs::write(mount.path().join(name).join("p.yaml"), text).unwrap();
    };
    version("..1", &namespace("a", "1"));
    symlink("..1", mount.path().join("..data")).unwrap();
    symlink("..data/p.yaml", mount.path().join("p.yaml")).unwrap();
    let (mut watch, first) = watch(mount.path());
    assert_eq!(shown(&first), names(&["a"], &[]), "once, not once per link");

    version("..2", &namespace("a", "2"));
    symlink("..2", mount.path().join("..tmp")).unwrap();
    fs::rename(mount.path().join("..tmp"), mount.path().join("..data")).unwrap();
    fs::remove_dir_all(mount.path().join("..1")).unwrap();
    assert_eq!(shown(&settled(&mut watch).unwrap()), names(&["a"], &[]));
}

#[test]
fn a_path_that_goes_away_keeps_its_objects_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), namespace("a", "1")).unwrap();
    let (mut watch, _) = watch(&root);
    fs::rename(&root, folder.path().join("away")).unwrap();
    let update = settled(&mut watch).unwrap();
    assert_eq!(shown(&update), names(&[], &[]));
    assert!(update.problems[0].message.contains("stays in force"), "{:?}", update.problems);
    assert!(settled(&mut watch).is_none(), "said once");
    fs::rename(folder.path().join("away"), &root).unwrap();
    assert!(settled(&mut watch).unwrap().problems.is_empty());
}

#[test]
fn an_object_that_a_later_file_covered_comes_back_when_that_file_goes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), namespace("x", "1")).unwrap();
    fs::write(folder.path().join("b.yaml"), namespace("x", "2")).unwrap();
    let (mut watch, first) = watch(folder.path());
    assert_eq!(shown(&first), names(&["x"], &[]));
    assert!(first.problems[0].message.contains("already defined"), "{:?}", first.problems);
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    let update = settled(&mut watch).unwrap();
    assert_eq!(shown(&update), names(&["x"], &[]));
    assert!(update.apply[0].origin.file.as_deref().unwrap().ends_with("a.yaml"));
    assert!(update.problems.is_empty());
}
