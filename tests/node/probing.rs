//! `weir probe`: connections opened on purpose from inside a pod's network namespace.

use super::*;

#[test]
fn probe_opens_what_a_pod_needs_from_inside_its_network_namespace() -> Result<()> {
    let rehearsal = begin()?;
    let probe = |more: &[&str]| -> Result<(Option<i32>, Value)> {
        let arguments = ["probe", "my-namespace/httpbin", "--timeout", "1s", "--output", "json"];
        let said = rehearsal.agent.command(&[&arguments, more].concat())?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let json =
            serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&said.stderr)))?;
        Ok((said.status.code(), json))
    };
    let of = |json: &Value, flow: &str| -> Vec<Value> {
        json["results"].as_array().into_iter().flatten().filter(|r| r["flow"] == flow).cloned().collect()
    };
    let (code, json) = probe(&[])?;
    ensure!(code == Some(1), "{code:?} {json:#}");
    let xds = of(&json, "sidecar-xds");
    ensure!(xds.len() == 1 && xds[0]["answered"]["reached"] == "timed-out", "{json:#}");
    ensure!(xds[0]["policies"] == serde_json::json!(["my-namespace/default-deny"]), "{xds:#?}");
    // As the pod would: at the Service's address, while policies see the pod's port.
    let dialled: SocketAddr = xds[0]["to"].as_str().context("no address")?.parse()?;
    let service = rehearsal.mesh.cluster.service("istio-system/istiod").context("no Service")?;
    let cluster_ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).context("no address of it")?;
    ensure!(xds[0]["service"] == "istio-system/istiod" && dialled.ip().to_string() == cluster_ip, "{xds:#?}");
    let dns = of(&json, "sidecar-dns");
    ensure!(!dns.is_empty() && dns.iter().all(|r| r["answered"]["reached"] == "timed-out"), "{dns:#?}");
    let open = rehearsal.fixture.states.last().context("a state that opens it")?.name.clone();
    rehearsal.enter(&open, Enforcement::Drop)?;
    let begin = Instant::now();
    loop {
        let (_, json) = probe(&["sidecar-xds", "sidecar-dns"])?;
        let all = json["results"].as_array().context("no results")?;
        ensure!(all.iter().all(|r| r["flow"] == "sidecar-xds" || r["flow"] == "sidecar-dns"), "{json:#}");
        if !all.is_empty() && all.iter().all(|r| r["answered"]["reached"] == "established") {
            let udp = of(&json, "sidecar-dns").into_iter().find(|r| r["protocol"] == "UDP");
            let udp = udp.context("DNS over UDP was not asked")?;
            ensure!(udp["answered"]["said"].as_str().is_some_and(|s| s.contains("kubernetes.default")), "{udp:#}");
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "not all can be reached: {json:#}");
    }
    // Whom the certificate is for is told apart from whether the port can be reached.
    let istiod = End::Pod(xds[0]["destination"].as_str().context("no destination")?.to_owned());
    rehearsal.mesh.stop_listening(&istiod, Protocol::Tcp, 15012)?;
    for (name, right) in [("istiod.istio-system.svc", true), ("istiod.somewhere-else.svc", false)] {
        let _server = TlsServer::start(rehearsal.mesh.namespace(&istiod)?, 15012, &[name])?;
        let (code, json) = probe(&["sidecar-xds"])?;
        let answered = &of(&json, "sidecar-xds")[0]["answered"];
        ensure!(answered["reached"] == "established" && answered["right"] == right, "{json:#}");
        ensure!(answered["said"].as_str().is_some_and(|s| s.contains("istiod.istio-system.svc")), "{json:#}");
        ensure!(code == Some(i32::from(!right)), "{code:?} {json:#}");
    }
    rehearsal.mesh.listen(&istiod, Protocol::Tcp, 15012)?;
    // Never more of them in a second than allowed.
    let begin = Instant::now();
    let (_, json) = probe(&["--rate", "2"])?;
    let opened = json["results"].as_array().context("no results")?.len();
    ensure!(opened > 1, "{json:#}");
    let least = Duration::from_millis(500) * u32::try_from(opened - 1)?;
    ensure!(begin.elapsed() >= least, "{opened} connections in {:?}", begin.elapsed());
    // The agent saw these as attempts of the pod.
    let begin = Instant::now();
    loop {
        let text = rehearsal.agent.command(&["probe", "my-namespace/httpbin", "sidecar-xds", "--timeout", "1s"])?;
        let text = String::from_utf8(text.stdout)?;
        ensure!(text.contains("from my-namespace/httpbin") && text.contains("sidecar-xds"), "{text}");
        ensure!(text.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns:\n{text}");
        let state = rehearsal.pair(rehearsal.flow(FLOW)?)?.context("the pair is gone")?["state"].clone();
        if state == "verified" {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the agent says {state}");
    }
}
