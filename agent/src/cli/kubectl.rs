//! `kubectl weir`: the binary under the name `kubectl-weir` runs a command in the agent's pod on the node of a named pod.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use clap::Parser;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, ListParams};
use kube::client::UpgradeConnectionError;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Error, ResourceExt as _};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Exit;
use crate::run::chain;

/// The name under which kubectl finds it.
const NAME: &str = "kubectl-weir";
/// The agents' pods, as the chart labels them.
const AGENTS: &str = "app.kubernetes.io/name=weir";
/// The container, and the command in it.
const COMMAND: &str = "weir";
/// What cannot do without a terminal.
const SCREEN: &str = "top";

/// Runs a command of weir in the agent's pod on the node of a pod.
#[derive(Debug, Parser)]
#[command(name = NAME, bin_name = "kubectl weir", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Kubectl {
    /// Namespace of the pod; that of the current context without it
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,

    /// Kubeconfig in place of kubectl's own
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig in place of the current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,

    /// Labels that agents' pods have
    #[arg(long, value_name = "LABELS", default_value = AGENTS)]
    agents: String,

    /// A pod on the node that is asked, or its workload: POD, or NAMESPACE/POD
    pod: String,

    /// Command of weir with its arguments; status without one
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

const EXAMPLES: &str = "Examples:
  kubectl weir -n shop cart-5d8f9c-x2x7k status --namespace shop
  kubectl weir shop/cart-5d8f9c-x2x7k explain shop/cart istio-system/istiod 15012

Install: put the binary, or a link to it, into the PATH under the name kubectl-weir. It needs what kubectl exec needs.
Exit codes: those of the command; 2 where it could not be run.";

/// Whether this process was started as the plugin.
pub fn is_called() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.is_some_and(|path| path.file_name().is_some_and(|name| name == NAME))
}

impl Kubectl {
    /// Finds the agent and runs the command there.
    pub fn run(self) -> anyhow::Result<Exit> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the event loop")?.block_on(self.remote())
    }

    async fn remote(self) -> anyhow::Result<Exit> {
        let Self { namespace, kubeconfig, context, agents, pod, mut command } = self;
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            Some(path) => {
                let unusable = |cause: String| anyhow!("cannot use the kubeconfig {}: {cause}", path.display());
                let read = Kubeconfig::read_from(&path).map_err(|e| unusable(chain(&e)))?;
                Config::from_custom_kubeconfig(read, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let config =
            config.map_err(|e| anyhow!("no cluster to ask: {}; name its kubeconfig with --kubeconfig", chain(&e)))?;
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (namespace.to_owned(), pod.to_owned()),
            None => (namespace.unwrap_or_else(|| config.default_namespace.clone()), pod),
        };
        let client = Client::try_from(config).context("cannot reach the cluster as the kubeconfig says")?;
        let (node, agent) = find(client.clone(), &namespace, &pod, &agents).await?;
        let home = agent.namespace().unwrap_or_default();
        let name = agent.name_any();
        if command.is_empty() {
            command.push("status".to_owned());
        }
        if command.first().is_some_and(|word| word == SCREEN) {
            let words = command.join(" ");
            bail!(
                "weir {SCREEN} draws on a terminal, which this plugin does not pass on; next: \
                 kubectl exec -it -n {home} {name} -c {COMMAND} -- {COMMAND} {words}"
            );
        }
        command.insert(0, COMMAND.to_owned());
        let params = AttachParams::default().container(COMMAND).stdin(false).stderr(true);
        let mut attached =
            Api::<Pod>::namespaced(client, &home).exec(&name, command, &params).await.map_err(|error| {
                failed(
                    &error,
                    &format!("run weir in {home}/{name} on node {node}"),
                    &format!("get pods/exec -n {home}"),
                )
            })?;
        let status = attached.take_status().context("the API server tells no exit code")?;
        let (out, err) = (attached.stdout(), attached.stderr());
        let (out, err) = (copy(out, tokio::io::stdout()), copy(err, tokio::io::stderr()));
        let (out, err, status) = tokio::join!(out, err, status);
        out?;
        err?;
        attached.join().await.context("the connection to the agent's pod broke")?;
        let status = status.context("the API server tells no exit code")?;
        Ok(exit(&status))
    }
}

/// The node of a pod, and the agent's pod there.
async fn find(client: Client, namespace: &str, name: &str, agents: &str) -> anyhow::Result<(String, Pod)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = pods.get_opt(name).await.map_err(|error| {
        failed(&error, &format!("read pod {namespace}/{name}"), &format!("get pods -n {namespace}"))
    })?;
    let pod = match pod {
        Some(pod) => Some(pod),
        None => of_workload(&pods, namespace, name).await?,
    };
    let missing =
        || format!("there is no pod {name} in {namespace}, nor a workload; next: kubectl get pods -n {namespace}");
    let pod = pod.with_context(missing)?;
    let node = pod.spec.and_then(|s| s.node_name);
    let node = node.with_context(|| format!("{namespace}/{name} is on no node yet; try again once it is scheduled"))?;
    let on_node = ListParams::default().labels(agents).fields(&format!("spec.nodeName={node}"));
    let found = Api::<Pod>::all(client).list(&on_node).await;
    let found = found.map_err(|error| failed(&error, "find the agent's pod", "list pods --all-namespaces"))?;
    let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    match found.into_iter().find(running) {
        Some(agent) => Ok((node, agent)),
        None => bail!(
            "no agent runs on node {node} (pods with {agents}); next: kubectl get daemonsets -A -l {agents}, or --agents LABELS"
        ),
    }
}

/// A pod of a workload that has this name: one that is on a node, where there is one.
async fn of_workload(pods: &Api<Pod>, namespace: &str, name: &str) -> anyhow::Result<Option<Pod>> {
    let all = pods.list(&ListParams::default()).await;
    let all = all.map_err(|error| failed(&error, "list pods", &format!("list pods -n {namespace}")))?;
    let mut its: Vec<Pod> =
        all.into_iter().filter(|pod| *weir_engine::cluster::Pod::from_api(pod).workload.name == *name).collect();
    its.sort_by_key(|pod| (pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()), pod.name_any()));
    Ok(its.into_iter().next())
}

/// What could not be done, why, and the command that says more.
fn failed(error: &Error, what: &str, right: &str) -> anyhow::Error {
    let code = match error {
        Error::Api(status) => Some(status.code),
        Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => Some(code.as_u16()),
        _ => None,
    };
    let next = match code {
        Some(403) => format!("you may not; kubectl auth can-i {right} says so too"),
        Some(401) => "the API server does not know you; kubectl auth whoami".to_owned(),
        Some(404) => format!("it is gone, or was replaced; try again, or kubectl auth can-i {right}"),
        _ => "does kubectl cluster-info answer?".to_owned(),
    };
    anyhow!("cannot {what}: {}; {next}", chain(error))
}

async fn copy(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) -> anyhow::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    tokio::io::copy(&mut from, &mut to).await.map(drop).map_err(|e| anyhow!(e))
}

/// The command's own exit code, where it ended with one.
fn exit(status: &Status) -> Exit {
    if status.status.as_deref() == Some("Success") {
        return Exit::Fine;
    }
    let causes = status.details.iter().flat_map(|d| d.causes.iter().flatten());
    let code =
        causes.filter(|c| c.reason.as_deref() == Some("ExitCode")).find_map(|c| c.message.as_deref()?.parse().ok());
    code.map_or(Exit::Failed, Exit::of)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

    use super::{Exit, Kubectl, exit};

    #[test]
    fn what_follows_the_pod_is_the_commands() {
        let parsed = Kubectl::parse_from(["kubectl-weir", "-n", "a", "pod", "status", "--namespace", "b", "--all"]);
        assert_eq!((parsed.namespace.as_deref(), &*parsed.pod), (Some("a"), "pod"));
        assert_eq!(parsed.command, ["status", "--namespace", "b", "--all"]);
    }

    #[test]
    fn the_exit_code_is_the_commands() {
        let ended = |code: &str| {
            let cause = StatusCause { reason: Some("ExitCode".into()), message: Some(code.into()), field: None };
            let details = StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() };
            Status { status: Some("Failure".into()), details: Some(details), ..Status::default() }
        };
        assert_eq!(exit(&Status { status: Some("Success".into()), ..Status::default() }), Exit::Fine);
        assert_eq!(exit(&ended("1")), Exit::Findings);
        assert_eq!(exit(&ended("137")), Exit::Failed);
        assert_eq!(exit(&Status::default()), Exit::Failed);
    }
}
