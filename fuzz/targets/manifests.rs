//! Any bytes as a manifest: the loader neither panics nor hangs, and whatever it loads can be judged.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use weir::cluster::manifests::{Keep, parse};
use weir_engine::cluster::{Cluster, Origin};
use weir_engine::policy::{Endpoint, Flow, Policies, Profile};
use weir_engine::words::Protocol;

fuzz_target!(|bytes: &[u8]| {
    let loaded = parse(&Arc::from("fuzz.yaml"), bytes, Keep::Object);
    let mut cluster = Cluster::default();
    for loaded in loaded.objects {
        cluster.apply(loaded.object, Origin::default());
    }
    let policies = Policies::of(&cluster, Profile::default());
    let ends: Vec<_> =
        cluster.pods().take(4).map(|pod| Endpoint::Pod { name: pod.name.clone(), address: None }).collect();
    for source in ends.iter().chain([&Endpoint::External]) {
        for destination in &ends {
            let (source, destination) = (source.clone(), destination.clone());
            let flow = Flow { source, destination, protocol: Protocol::Tcp, port: 15012, dialled: None };
            assert_eq!(policies.decide(&cluster, &flow).admission(), policies.admits(&cluster, &flow));
        }
    }
});
