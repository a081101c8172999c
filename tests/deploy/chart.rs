//! Renders the Helm chart as `helm template` does, without Helm: Go templates by `gtmpl-ng`, and the few functions of Helm's
//! that the chart uses. A function that is not here is an error, so the chart cannot outgrow this file unseen.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use gtmpl_ng::{Context, Func, FuncError, Template, Value};
use serde_json::Value as Json;

/// What the release is called where a test does not care.
pub const NAMESPACE: &str = "weir-system";

/// The folder of the chart.
pub fn folder() -> PathBuf {
    super::root().join("deploy/helm/weir")
}

/// The chart's own values, with these laid over them: maps are merged, everything else is replaced.
pub fn values(over: &str) -> Json {
    let mut values = super::yaml(&super::read(&folder().join("values.yaml")));
    merge(&mut values, super::yaml(over));
    values
}

fn merge(into: &mut Json, over: Json) {
    match (into, over) {
        (Json::Object(into), Json::Object(over)) => {
            for (key, value) in over {
                merge(into.entry(key).or_insert(Json::Null), value);
            }
        }
        (_, Json::Null) => {}
        (into, over) => *into = over,
    }
}

/// The documents of each template, by the template's file name. `service` is what installs them: `Helm` in Helm.
pub fn render(over: &str, service: &str) -> Vec<(String, String)> {
    let chart = super::yaml(&super::read(&folder().join("Chart.yaml")));
    let context = object([
        ("Values", value(&values(over))),
        // Helm spells the fields of Chart.yaml with a capital.
        ("Chart", object([("AppVersion", value(&chart["appVersion"]))])),
        ("Release", object([("Namespace", Value::from(NAMESPACE)), ("Service", Value::from(service))])),
    ]);
    HELPERS.with_borrow_mut(|helpers| *helpers = super::read(&folder().join("templates/_helpers.tpl")));
    let mut files: Vec<PathBuf> = super::files(&folder().join("templates"));
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    files
        .iter()
        .flat_map(|file| {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let text = execute(&super::read(file), &context).unwrap_or_else(|e| panic!("{name}: {e}"));
            documents(&text).into_iter().map(move |document| (name.clone(), document))
        })
        .collect()
}

/// The documents of a YAML text that hold more than comments.
fn documents(text: &str) -> Vec<String> {
    let blank = |l: &str| l.trim().is_empty() || l.trim_start().starts_with('#');
    text.split("\n---\n").filter(|d| !d.lines().all(blank)).map(|d| format!("{}\n", d.trim_matches('\n'))).collect()
}

thread_local! {
    /// What `include` looks up: functions of a template get their arguments and nothing else.
    static HELPERS: RefCell<String> = const { RefCell::new(String::new()) };
}

fn execute(text: &str, context: &Value) -> Result<String, String> {
    let mut template = Template::default();
    template.add_funcs(&[
        ("include", include as Func),
        ("filesGet", files_get),
        ("toYaml", to_yaml),
        ("nindent", nindent),
        ("quote", quote),
        ("default", default),
        ("join", join),
        ("list", list),
    ]);
    // The crate knows no methods with arguments.
    template.parse(text.replace(".Files.Get ", "filesGet ")).map_err(|e| e.to_string())?;
    template.render(&Context::from(context.clone())).map_err(|e| e.to_string())
}

fn include(args: &[Value]) -> Result<Value, FuncError> {
    let [Value::String(name), context] = args else { return Err(wrong("include NAME CONTEXT")) };
    let text = HELPERS.with_borrow(|helpers| format!("{helpers}{{{{- template {name:?} . -}}}}"));
    execute(&text, context).map(|text| Value::from(text.trim_start_matches('\n'))).map_err(FuncError::Generic)
}

fn files_get(args: &[Value]) -> Result<Value, FuncError> {
    let [Value::String(path)] = args else { return Err(wrong("Files.Get PATH")) };
    Ok(Value::from(super::read(&folder().join(Path::new(path)))))
}

fn to_yaml(args: &[Value]) -> Result<Value, FuncError> {
    let [value] = args else { return Err(wrong("toYaml VALUE")) };
    let text = serde_saphyr::to_string(&json(value)).map_err(|e| FuncError::Generic(e.to_string()))?;
    Ok(Value::from(text.trim_end()))
}

fn nindent(args: &[Value]) -> Result<Value, FuncError> {
    let [Value::Number(width), Value::String(text)] = args else { return Err(wrong("nindent WIDTH TEXT")) };
    let indent = " ".repeat(width.as_u64().and_then(|w| usize::try_from(w).ok()).unwrap_or(0));
    Ok(Value::from(text.split('\n').fold(String::new(), |out, line| out + "\n" + &indent + line)))
}

fn quote(args: &[Value]) -> Result<Value, FuncError> {
    let [value] = args else { return Err(wrong("quote VALUE")) };
    Ok(Value::from(format!("{:?}", text(value))))
}

fn default(args: &[Value]) -> Result<Value, FuncError> {
    let [fallback, value] = args else { return Err(wrong("default FALLBACK VALUE")) };
    Ok(if truth(value) { value.clone() } else { fallback.clone() })
}

fn join(args: &[Value]) -> Result<Value, FuncError> {
    let [Value::String(separator), Value::Array(items)] = args else { return Err(wrong("join SEPARATOR LIST")) };
    Ok(Value::from(items.iter().map(text).collect::<Vec<_>>().join(separator)))
}

fn list(args: &[Value]) -> Result<Value, FuncError> {
    Ok(Value::Array(args.to_vec()))
}

fn wrong(usage: &str) -> FuncError {
    FuncError::Generic(format!("usage: {usage}"))
}

fn truth(value: &Value) -> bool {
    match json(value) {
        Json::Null => false,
        Json::Bool(b) => b,
        Json::Number(n) => n.as_f64() != Some(0.0),
        Json::String(s) => !s.is_empty(),
        Json::Array(a) => !a.is_empty(),
        Json::Object(o) => !o.is_empty(),
    }
}

fn text(value: &Value) -> String {
    match json(value) {
        Json::String(s) => s,
        other => other.to_string(),
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

fn value(json: &Json) -> Value {
    serde_json::from_value(json.clone()).unwrap()
}

fn json(value: &Value) -> Json {
    serde_json::to_value(value).unwrap()
}

#[cfg(test)]
mod tests {
    use super::{folder, values};

    fn validator() -> jsonschema::Validator {
        let text = crate::read(&folder().join("values.schema.json"));
        jsonschema::draft7::new(&serde_json::from_str(&text).unwrap()).unwrap()
    }

    #[test]
    fn the_values_fit_their_schema() {
        let schema = validator();
        let own = values("");
        let problems: Vec<String> = schema.iter_errors(&own).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(problems.is_empty(), "{problems:?}");
        for wrong in [
            "{http: {port: 70000}}",
            "{http: {prot: 15099}}",
            "{agent: {window: five minutes}}",
            "{agent: {ports: ['53']}}",
            "{image: {digest: sha256:00}}",
            "{legacyCapabilites: true}",
            "{podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}",
            "{istio: {configMaps: []}}",
        ] {
            assert!(!schema.is_valid(&values(wrong)), "{wrong} is accepted");
        }
    }

    /// Each value has a comment right above it. What is Kubernetes' own is documented there.
    #[test]
    fn the_values_are_documented() {
        let text = crate::read(&folder().join("values.yaml"));
        let lines: Vec<&str> = text.lines().collect();
        let (mut group, mut values) = ("", 0);
        for (i, line) in lines.iter().enumerate() {
            let name = line.trim_start();
            let (indent, comment) = (line.len() - name.len(), name.starts_with('#') || name.starts_with('-'));
            let Some((key, _)) = name.split_once(':').filter(|_| !comment) else { continue };
            if indent == 0 {
                group = key;
            } else if ["nodeSelector", "resources", "updateStrategy", "seccompProfile"].contains(&group) {
                continue;
            }
            assert!(i > 0 && lines[i - 1].trim_start().starts_with('#'), "{group}: {key} has no comment");
            values += 1;
        }
        assert!(values > 50, "{values}");
    }
}
