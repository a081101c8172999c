//! What holds for every cluster.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;
use weir_engine::cluster::Cluster;
use weir_engine::policy::{Endpoint, Policies, Profile};
use weir_engine::words::Protocol;

use crate::naive::Naive;
use crate::random::{flows, object, objects};
use crate::world::World;

fn everything(world: &World, objects: &[Value]) -> String {
    flows(objects).iter().map(|f| format!("{f:?} {:?}\n", world.decide(f))).collect()
}

fn fresh(objects: &[Value]) -> World {
    World::new(objects.iter().cloned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_index_says_what_the_specification_says(objects in objects()) {
        let world = fresh(&objects);
        let naive = Naive { objects: &objects };
        for flow in flows(&objects) {
            let decision = world.decide(&flow);
            let sides = [decision.egress.admission(), decision.ingress.admission()];
            prop_assert_eq!(sides, naive.decide(&flow), "{:?}\n{:?}", flow, decision);
        }
    }

    #[test]
    fn order_does_not_matter(objects in objects(), shuffle in any::<prop::sample::Index>()) {
        let mut turned = objects.clone();
        turned.rotate_left(shuffle.index(objects.len()));
        turned.reverse();
        prop_assert_eq!(everything(&fresh(&objects), &objects), everything(&fresh(&turned), &objects));
    }

    /// Any history of changes ends where a fresh load of what is left begins.
    #[test]
    fn history_does_not_matter(steps in vec((object(), any::<bool>()), 0..40), base in objects()) {
        let mut world = fresh(&base);
        let mut left: Vec<Value> = base;
        let same = |a: &Value, b: &Value| {
            a["kind"] == b["kind"] && ["name", "namespace"].iter().all(|f| a["metadata"][f] == b["metadata"][f])
        };
        for (object, delete) in steps {
            left.retain(|o| !same(o, &object));
            if delete {
                world.delete(&object);
            } else {
                world.apply(object.clone());
                left.push(object);
            }
        }
        let loaded = fresh(&left);
        prop_assert_eq!(everything(&world, &left), everything(&loaded, &left));
        let at_once = World { policies: Policies::of(&loaded.cluster, Profile::Spec), cluster: loaded.cluster.clone() };
        prop_assert_eq!(everything(&at_once, &left), everything(&loaded, &left));
    }

    /// Classes answer for their pods.
    #[test]
    fn reachability_is_every_pair(objects in objects(), port in prop::sample::select(vec![80u16, 443])) {
        let world = fresh(&objects);
        let reach = world.policies.reachability(&world.cluster, Protocol::Tcp, port);
        let mut admitted = 0;
        for (s, source) in reach.classes().iter().enumerate() {
            for (d, destination) in reach.classes().iter().enumerate() {
                for a in &source.pods {
                    for b in destination.pods.iter().filter(|b| *b != a) {
                        let end = |name: &weir_engine::words::Name| Endpoint::Pod { name: name.clone(), address: None };
                        let flow = weir_engine::policy::Flow {
                            source: end(a), destination: end(b), protocol: Protocol::Tcp, port, dialled: None,
                        };
                        let answer = world.decide(&flow).admission();
                        prop_assert_eq!(answer, reach.answer(s, d), "{:?}", flow);
                        admitted += usize::from(answer == weir_engine::policy::Admission::Admitted);
                    }
                }
            }
        }
        prop_assert_eq!(admitted, reach.admitted());
    }
}

#[test]
fn an_empty_cluster_answers() {
    let world = World { cluster: Cluster::default(), policies: Policies::default() };
    assert_eq!(world.verdict("8.8.8.8 -> 9.9.9.9 TCP 1"), "yes");
    assert_eq!(world.verdict("a/b -> 9.9.9.9 TCP 1"), "?");
}
