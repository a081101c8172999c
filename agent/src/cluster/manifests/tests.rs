//! What the loader makes of good, doubtful, broken and hostile text.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weir_engine::cluster::Object;

use super::{Keep, Manifests, Severity, load, parse};

fn read(text: &str) -> Manifests {
    parse(&"f.yaml".into(), text.as_bytes(), Keep::Object)
}

fn keys(manifests: &Manifests) -> Vec<String> {
    manifests.objects.iter().map(|f| format!("{} @{}", f.key, f.origin.line.unwrap_or(0))).collect()
}

fn problems(manifests: &Manifests) -> Vec<String> {
    manifests.problems.iter().map(ToString::to_string).collect()
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

#[test]
fn every_document_of_a_stream_is_found_with_its_line() {
    let text = format!(
        "# a comment\n\n{}---\n---\n# only a comment\n--- # marked\n{}...\n---\n{}",
        namespace("a"),
        namespace("b"),
        namespace("c")
    );
    let found = read(&text);
    assert_eq!(keys(&found), ["Namespace a @3", "Namespace b @11", "Namespace c @17"]);
    assert_eq!((found.documents, problems(&found)), (3, vec![]));
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_no_obstacle() {
    let text = format!("\u{feff}{}---\n{}", namespace("a"), namespace("b")).replace('\n', "\r\n");
    assert_eq!(keys(&read(&text)), ["Namespace a @1", "Namespace b @6"]);
}

#[test]
fn a_broken_document_is_named_and_the_others_load() {
    let text =
        format!("{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: [}}\n---\n{}", namespace("a"), namespace("b"));
    let found = read(&text);
    assert_eq!(keys(&found), ["Namespace a @1", "Namespace b @10"]);
    let [problem] = found.problems.as_slice() else { panic!("{:?}", found.problems) };
    assert_eq!((problem.severity, problem.document, problem.line), (Severity::Error, Some(2), Some(8)), "{problem}");
    assert!(found.is_incomplete());
}

#[test]
fn what_is_wrong_is_said_where_it_is() {
    let table: [(&str, &str, u32, &str); 8] = [
        ("tab", "kind: A\nspec:\n\tports: 1\n", 3, "this has tabs"),
        ("template", "kind: A\nname: {{ .Values.x }}\n", 2, "helm template"),
        ("text", "just words\n", 1, "a document must be a mapping"),
        ("no kind", "apiVersion: v1\nmetadata: {name: x}\n", 1, "kind is missing"),
        ("no name", "\napiVersion: v1\nkind: Pod\n", 2, "metadata.name is missing"),
        (
            "bare label",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  labels: {inject: true}\n",
            1,
            "quotes",
        ),
        (
            "wrong type",
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: 80}\n",
            1,
            "Service x: invalid type",
        ),
        ("unknown alias", "kind: A\nspec: *none\n", 2, "unknown anchor"),
    ];
    for (name, text, line, says) in table {
        let found = read(text);
        let [problem] = found.problems.as_slice() else { panic!("{name}: {:?}", found.problems) };
        assert_eq!(problem.line, Some(line), "{name}: {problem}");
        assert!(problem.to_string().contains(says), "{name}: {problem}");
        assert!(found.objects.is_empty(), "{name}");
    }
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_line() {
    let found = parse(&"f.yaml".into(), b"kind: A\nname: \xff\n", Keep::Object);
    assert_eq!(problems(&found), ["f.yaml:2: not UTF-8 text"]);
    let found = parse(&"f.yaml".into(), b"\xff\xfek\0i\0", Keep::Object);
    assert!(problems(&found)[0].contains("UTF-16"));
}

#[test]
fn the_last_of_equal_keys_wins_and_is_reported() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels:\n    app: first\n    app: second\nspec:\n  containers:\n  - name: a\n    image: one\n    image: two\n";
    let found = read(text);
    let Object::Pod(pod) = &found.objects.first().unwrap_or_else(|| panic!("{:?}", found.problems)).object else {
        panic!()
    };
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["app"], "second");
    let shown = problems(&found);
    assert!(shown[0].starts_with("f.yaml:7: document 1: metadata.labels.app is defined twice"), "{shown:?}");
    assert!(shown[1].starts_with("f.yaml:12: document 1: spec.containers[0].image is defined twice"), "{shown:?}");
    assert!(!found.is_incomplete(), "doubt is no fault");
}

#[test]
fn lists_are_taken_apart_and_each_item_keeps_its_line() {
    let text = "kind: List\napiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: a\n- apiVersion: policy/v1\n  kind: PodDisruptionBudget\n  metadata: {name: d}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n";
    let found = read(text);
    assert_eq!(keys(&found), ["Namespace a @4", "Namespace b @11"]);
    assert_eq!(found.ignored.get("policy/v1 PodDisruptionBudget"), Some(&1));

    let typed =
        "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: p, namespace: ns}\n  spec: {containers: []}\n";
    assert_eq!(keys(&read(typed)), ["Pod ns/p @4"], "items of a typed list say neither apiVersion nor kind");
    assert_eq!(problems(&read("apiVersion: v1\nkind: List\nitems:\n")), Vec::<String>::new());
}

#[test]
fn json_is_read_in_all_its_shapes() {
    let one = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n";
    let two = one.replace("\"a\"", "\"b\"");
    assert_eq!(keys(&read(one)), ["Namespace a @1"]);
    assert_eq!(keys(&read(&format!("{one}{two}"))), ["Namespace a @1", "Namespace b @6"]);
    assert_eq!(keys(&read(&format!("[{one},{two}]"))).len(), 2);
    let minified =
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"a\",\"labels\":{\"u\":\"\\u00e9\"}}}";
    assert_eq!(keys(&read(minified)), ["Namespace a @1"]);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = "x-common: &l {app: web, tier: front}\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    <<: *l\n    tier: back\n";
    let found = read(text);
    let Object::Namespace(o) = &found.objects[0].object else { panic!() };
    let labels = o.metadata.labels.as_ref().unwrap();
    assert_eq!((labels["app"].as_str(), labels["tier"].as_str()), ("web", "back"));
}

#[test]
fn the_same_object_twice_is_said_and_the_later_is_used() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{v: \"2\"}}}}\n",
        namespace("a")
    );
    let found = read(&text);
    assert_eq!(keys(&found), ["Namespace a @6"]);
    assert!(problems(&found)[0].contains("already defined at f.yaml:1"), "{:?}", found.problems);
}

#[test]
fn hostile_text_ends_soon_with_a_clear_word() {
    let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let _ = writeln!(laughs, "a{i}: &a{i} [{}]", vec![format!("*a{}", i - 1); 10].join(","));
    }
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
    let table = [
        ("billion laughs", laughs, "unfold"),
        ("long scalar copied", long, "unfold"),
        ("deep flow", "[".repeat(1 << 20), "deeper than"),
        ("deep flow maps", "{a: ".repeat(1 << 18), "deeper than"),
        ("deep blocks", "- ".repeat(1 << 18), "deeper than"),
        ("deep JSON", "{\"a\":".repeat(1 << 18), "deeper than"),
        ("self reference", "a: &a [*a]\n".to_owned(), "alias"),
        ("not closed", format!("a: \"{}", "x\n".repeat(1 << 20)), ""),
        ("one long line", format!("a: {}: b", "x".repeat(4 << 20)), ""),
    ];
    for (name, text, says) in table {
        let started = Instant::now();
        let found = read(&text);
        let took = started.elapsed();
        assert!(!found.problems.is_empty(), "{name}");
        assert!(found.problems[0].message.contains(says), "{name}: {}", found.problems[0]);
        assert!(took < Duration::from_secs(60), "{name} took {took:?}");
    }
}

#[test]
fn ten_megabytes_are_read() {
    let blob = "0123456789abcdef".repeat(10 << 16);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: big}}\ndata:\n  blob: {blob}\n---\n{}",
        namespace("a")
    );
    let found = read(&text);
    assert_eq!((keys(&found), found.ignored.get("v1 Secret")), (vec!["Namespace a @7".to_owned()], Some(&1)));
    let mut many = String::from("apiVersion: v1\nkind: Secret\nmetadata: {name: many}\ndata:\n");
    for i in 0..200_000 {
        let _ = writeln!(many, "  key-{i}: \"a value of some length {i}\"");
    }
    let started = Instant::now();
    assert_eq!(read(&many).ignored.get("v1 Secret"), Some(&1));
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn problems_are_bounded() {
    let found = read(&"--- a\n".repeat(3000));
    assert_eq!((found.problems.len(), found.problems_left_out), (1000, 2000));
}

#[test]
fn folders_are_walked_in_name_order_and_only_manifests_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("b.yml", &namespace("b"));
    write("a/deep/x.yaml", &namespace("a"));
    write("c.json", "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"c\"}}");
    write("README.md", "kind: [");
    write(".hidden/x.yaml", &namespace("hidden"));
    write("..2026/x.yaml", &namespace("hidden2"));
    std::os::unix::fs::symlink(folder.path(), folder.path().join("a/circle")).unwrap();
    let names = |paths: &[PathBuf]| -> Vec<String> {
        load(paths).unwrap().objects.iter().map(|f| f.key.name.to_string()).collect()
    };
    assert_eq!(names(&[folder.path().to_owned()]), ["a", "b", "c"]);
    assert_eq!(names(&[folder.path().join("b.yml"), folder.path().to_owned()]), ["b", "a", "c"], "each file once");
}

#[test]
fn a_path_that_is_not_there_is_an_error_with_advice() {
    let error = load(&[PathBuf::from("/no/such/folder")]).unwrap_err().to_string();
    assert!(error.contains("/no/such/folder") && error.contains("No such file"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let found = load(&[empty.path().to_owned()]).unwrap();
    assert!(problems(&found)[0].contains("no *.yaml"), "{:?}", found.problems);
}
