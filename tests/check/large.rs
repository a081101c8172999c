//! A large mesh as manifests: how many pods and policies is up to the caller.

use std::fmt::Write as _;

const NAMESPACES: usize = 100;
const NODES: usize = 100;

/// YAML of the cluster: nodes, namespaces, a control plane, DNS, and `pods` sidecar pods with their Services.
pub fn cluster(pods: usize) -> String {
    let mut out = String::new();
    for n in 0..NODES {
        let _ = writeln!(
            out,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}}}\nspec: {{podCIDR: 10.{}.{}.0/24}}\nstatus:\n  \
             addresses:\n  - {{type: InternalIP, address: 192.168.{}.{}}}",
            64 + n / 256,
            n % 256,
            n / 250,
            n % 250 + 1
        );
    }
    for name in ["default", "kube-system", "istio-system"] {
        namespace(&mut out, name, "");
    }
    pod(&mut out, "kube-system", "coredns-0", "k8s-app: kube-dns", "{name: dns, containerPort: 53, protocol: UDP}", 1);
    pod(&mut out, "kube-system", "coredns-1", "k8s-app: kube-dns", "{name: dns, containerPort: 53, protocol: UDP}", 2);
    service(&mut out, "kube-system", "kube-dns", "k8s-app: kube-dns", "{name: dns, port: 53, protocol: UDP}");
    for n in 0..3 {
        let labels = "app: istiod, istio: pilot, istio.io/rev: default";
        let name = format!("istiod-{n}");
        pod(&mut out, "istio-system", &name, labels, "{containerPort: 15012}, {containerPort: 15017}", 3 + n);
    }
    let ports = "{name: xds, port: 15012}, {name: webhook, port: 443, targetPort: 15017}";
    service(&mut out, "istio-system", "istiod", "app: istiod", ports);
    for n in 0..NAMESPACES {
        let name = format!("team-{n}");
        namespace(&mut out, &name, ", istio-injection: enabled");
        for w in 0..10 {
            service(&mut out, &name, &format!("svc-{w}"), &format!("app: app-{w}"), "{port: 80, targetPort: 8080}");
        }
    }
    for p in 0..pods {
        let (namespace, workload) = (format!("team-{}", p % NAMESPACES), p / NAMESPACES % 10);
        let labels = format!(
            "app: app-{workload}, version: v1, tier: t{}, security.istio.io/tlsMode: istio, \
             service.istio.io/canonical-name: app-{workload}, pod-template-hash: abcdef",
            workload % 3
        );
        let name = format!("app-{workload}-abcdef-{p:05}");
        let ports = "{name: http, containerPort: 8080}";
        pod(&mut out, &namespace, &name, &labels, ports, 10 + p);
    }
    out
}

/// YAML of `count` policies: per namespace a default deny, DNS, the control plane, and rules between its workloads.
pub fn policies(count: usize) -> String {
    let mut out = String::new();
    for n in 0..count {
        let namespace = format!("team-{}", n / 4 % NAMESPACES);
        let rest = match n % 4 {
            0 => "podSelector: {}\n  policyTypes: [Ingress, Egress]".to_owned(),
            // Every tenth namespace has the wrong port for DNS.
            1 if n / 4 % 10 == 0 => {
                "podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports: [{protocol: UDP, port: 5353}]".to_owned()
            }
            1 => "podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports: [{protocol: UDP, port: 53}, {protocol: \
                  TCP, port: 53}]"
                .to_owned(),
            2 => "podSelector: {matchLabels: {security.istio.io/tlsMode: istio}}\n  policyTypes: [Egress]\n  egress:\n  - \
                  to:\n    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: istio-system}}\n      \
                  podSelector: {matchLabels: {app: istiod}}\n    ports: [{port: 15012}]"
                .to_owned(),
            _ => format!(
                "podSelector: {{matchLabels: {{tier: t{}}}}}\n  policyTypes: [Ingress]\n  ingress:\n  - from:\n    - \
                 podSelector: {{matchLabels: {{tier: t0}}}}\n    ports: [{{port: http}}]",
                n / 4 % 3
            ),
        };
        let _ = writeln!(
            out,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: policy-{n}, namespace: \
             {namespace}}}\nspec:\n  {rest}"
        );
    }
    out
}

fn namespace(out: &mut String, name: &str, labels: &str) {
    let _ = writeln!(
        out,
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{kubernetes.io/metadata.name: \
         {name}{labels}}}"
    );
}

fn pod(out: &mut String, namespace: &str, name: &str, labels: &str, ports: &str, index: usize) {
    let (node, address) = (index % NODES, format!("10.64.{}.{}", index / 250, index % 250 + 2));
    let _ = writeln!(
        out,
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{labels}}}\n  \
         annotations:\n    sidecar.istio.io/status: '{{\"containers\":[\"istio-proxy\"]}}'\nspec:\n  nodeName: node-{node}\n  \
         containers:\n  - name: app\n    image: registry.example.com/team/app:1.2.3\n    ports: [{ports}]\n    env:\n    - \
         {{name: A, value: b}}\n    resources: {{requests: {{cpu: 100m, memory: 128Mi}}}}\n  - name: istio-proxy\n    image: \
         docker.io/istio/proxyv2:1.30.0\n    ports: [{{name: http-envoy-prom, containerPort: 15090}}]\nstatus:\n  phase: \
         Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]"
    );
}

fn service(out: &mut String, namespace: &str, name: &str, selector: &str, ports: &str) {
    let _ = writeln!(
        out,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  selector: \
         {{{selector}}}\n  ports: [{ports}]"
    );
}
