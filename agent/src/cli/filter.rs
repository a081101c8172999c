//! What to show of everything that the agent knows: the same flags wherever pairs or attempts are listed.

use clap::Args;
use weir_engine::snapshot::{EndView, PairView};

/// One flag given twice means either; two flags mean both.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Only this flow, by id or code: sidecar-xds, SC-XDS; repeatable
    #[arg(long, value_name = "FLOW")]
    flow: Vec<String>,

    /// Only with an end in this namespace; repeatable
    #[arg(long, short, value_name = "NAME")]
    namespace: Vec<String>,

    /// Only with this workload as an end: NAME or NAMESPACE/NAME; repeatable
    #[arg(long, short, value_name = "NAME")]
    workload: Vec<String>,
}

impl Filter {
    /// Whether a pair is wanted.
    #[must_use]
    pub fn pair(&self, pair: &PairView) -> bool {
        self.flow(&[(&pair.flow, &pair.code)]) && self.ends([&pair.source, &pair.destination])
    }

    /// Whether one of these flows, each with its id and code, is wanted.
    #[must_use]
    pub fn flow(&self, flows: &[(&str, &str)]) -> bool {
        let is = |wanted: &str| {
            flows.iter().any(|(id, code)| id.eq_ignore_ascii_case(wanted) || code.eq_ignore_ascii_case(wanted))
        };
        self.flow.is_empty() || self.flow.iter().any(|f| is(f))
    }

    /// Whether one of the ends is wanted.
    #[must_use]
    pub fn ends(&self, ends: [&EndView; 2]) -> bool {
        let namespace = |n: &String| ends.iter().any(|e| *e.namespace == **n);
        let workload = |wanted: &String| {
            ends.iter().any(|e| match wanted.split_once('/') {
                Some((namespace, name)) => *e.namespace == *namespace && *e.workload == *name,
                None => *e.workload == **wanted,
            })
        };
        (self.namespace.is_empty() || self.namespace.iter().any(namespace))
            && (self.workload.is_empty() || self.workload.iter().any(workload))
    }
}

#[cfg(test)]
mod tests {
    use weir_engine::snapshot::EndView;

    use super::Filter;

    fn end(namespace: &str, workload: &str) -> EndView {
        EndView {
            kind: "workload".to_owned(),
            namespace: namespace.into(),
            workload: workload.into(),
            workload_kind: "Deployment".into(),
        }
    }

    /// Flows, namespaces and workloads asked for, and whether the pair fits.
    type Row = (&'static [&'static str], &'static [&'static str], &'static [&'static str], bool);

    #[test]
    fn flags_are_joined_by_and_and_their_values_by_or() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let (cart, istiod) = (end("shop", "cart"), end("istio-system", "istiod"));
        let table: [Row; 9] = [
            (&[], &[], &[], true),
            (&["sidecar-xds"], &[], &[], true),
            (&["sc-xds"], &[], &[], true),
            (&["sidecar"], &[], &[], false),
            (&["other", "SIDECAR-XDS"], &["shop"], &["istiod"], true),
            (&[], &["shop"], &["other"], false),
            (&[], &[], &["shop/istiod"], false),
            (&[], &[], &["istio-system/istiod"], true),
            (&[], &["sho"], &[], false),
        ];
        for (flow, namespace, workload, shown) in table {
            let filter = Filter { flow: words(flow), namespace: words(namespace), workload: words(workload) };
            let fits = filter.flow(&[("sidecar-xds", "SC-XDS")]) && filter.ends([&cart, &istiod]);
            assert_eq!(fits, shown, "{filter:?}");
        }
    }
}
