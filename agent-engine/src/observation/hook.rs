//! At which hook netfilter dropped a packet: one table of the functions that call the hooks.
//!
//! Rules of every table and tool run below `nf_hook_slow`, so the function that called it is the hook. Any other function in
//! the stack proves nothing: a packet that is forwarded has `ip_rcv` below it too.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Functions, innermost first, from the one that dropped the packet on. Shared: most drops come the same few ways.
pub type Stack = Arc<[Arc<str>]>;

/// A hook of netfilter, as `enum nf_inet_hooks` and `enum nf_dev_hooks` have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Hook {
    /// As the device received it.
    Ingress,
    /// Before it is routed.
    Prerouting,
    /// For this network namespace.
    Input,
    /// Through this network namespace.
    Forward,
    /// From a socket of this network namespace.
    Output,
    /// After it was routed.
    Postrouting,
    /// As the device sends it.
    Egress,
}

/// Callers of `nf_hook_slow` and the one hook that each of them calls (net/ipv4, net/ipv6, net/core/dev.c and
/// net/bridge/br_netfilter_hooks.c of 5.10 to 6.18), with those that they may be inlined into.
const CALLERS: &[(&str, Hook)] = &[
    ("__netif_receive_skb_core", Hook::Ingress),
    ("ip_rcv", Hook::Prerouting),
    ("ip_sublist_rcv", Hook::Prerouting),
    ("ip_list_rcv", Hook::Prerouting),
    ("ipv6_rcv", Hook::Prerouting),
    ("ip6_sublist_rcv", Hook::Prerouting),
    ("ipv6_list_rcv", Hook::Prerouting),
    ("br_nf_pre_routing", Hook::Prerouting),
    ("br_nf_pre_routing_ipv6", Hook::Prerouting),
    ("ip_local_deliver", Hook::Input),
    ("ip6_input", Hook::Input),
    ("ip6_mc_input", Hook::Input),
    ("ip_forward", Hook::Forward),
    ("ip6_forward", Hook::Forward),
    ("br_nf_forward", Hook::Forward),
    ("br_nf_forward_ip", Hook::Forward),
    ("__ip_local_out", Hook::Output),
    ("ip_local_out", Hook::Output),
    ("raw_send_hdrinc", Hook::Output),
    ("raw_sendmsg", Hook::Output),
    ("__ip6_local_out", Hook::Output),
    ("ip6_local_out", Hook::Output),
    ("ip6_xmit", Hook::Output),
    ("rawv6_send_hdrinc", Hook::Output),
    ("rawv6_sendmsg", Hook::Output),
    ("ip_output", Hook::Postrouting),
    ("ip_mc_output", Hook::Postrouting),
    ("ip6_output", Hook::Postrouting),
    ("br_nf_post_routing", Hook::Postrouting),
    ("__dev_queue_xmit", Hook::Egress),
];

impl Hook {
    /// The hook that a stack shows; `None` where it shows none for certain.
    #[must_use]
    pub fn of(stack: &[Arc<str>]) -> Option<Self> {
        let above = stack.iter().map(|function| &**function).skip_while(|function| *function != "nf_hook_slow");
        // Packets that came as a list go through one more function.
        let caller = above.skip(1).find(|function| *function != "nf_hook_slow_list")?;
        CALLERS.iter().find(|(function, _)| *function == caller).map(|(_, hook)| *hook)
    }

    /// The word of iptables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "INGRESS",
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
            Self::Egress => "EGRESS",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(functions: &str) -> Option<Hook> {
        Hook::of(&functions.split_whitespace().map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn who_called_the_hook_is_the_hook() {
        for (stack, expected) in [
            ("nft_do_chain nft_do_chain_inet nf_hook_slow ip_forward ip_rcv", Hook::Forward),
            ("nf_hook_slow ip6_forward ipv6_rcv", Hook::Forward),
            ("nf_hook_slow br_nf_forward_ip br_nf_forward br_nf_hook_thresh", Hook::Forward),
            ("nf_hook_slow ip_local_deliver ip_rcv_finish ip_rcv", Hook::Input),
            ("nft_do_chain nft_do_chain_inet nf_hook_slow ip6_input ipv6_rcv", Hook::Input),
            ("nf_hook_slow __ip_local_out ip_local_out __ip_queue_xmit", Hook::Output),
            ("nf_hook_slow ip6_xmit inet6_csk_xmit", Hook::Output),
            ("nf_hook_slow ip_output ip_forward ip_rcv", Hook::Postrouting),
            ("nf_hook_slow ip6_output ip6_xmit", Hook::Postrouting),
            ("nf_hook_slow ip_rcv __netif_receive_skb_one_core", Hook::Prerouting),
            ("nf_hook_slow nf_hook_slow_list ip_sublist_rcv ip_list_rcv", Hook::Prerouting),
            ("nf_queue nf_hook_slow ip_output ip_forward", Hook::Postrouting),
            ("nf_hook_slow __netif_receive_skb_core __netif_receive_skb_one_core", Hook::Ingress),
            ("nf_hook_slow __dev_queue_xmit ip_finish_output2 ip_output", Hook::Egress),
        ] {
            assert_eq!(hook(stack), Some(expected), "{stack}");
        }
    }

    #[test]
    fn what_the_stack_does_not_show_is_not_guessed() {
        for stack in [
            "",
            "nf_hook_slow",
            // Somebody else's hook, between those of the table.
            "nf_hook_slow ip_vs_nat_xmit ip_vs_in_hook nf_hook_slow ip_local_deliver ip_rcv",
            // A name that kallsyms did not tell.
            "nf_hook_slow ? ip_forward ip_rcv",
            // The verdict's way back from user space.
            "nfqnl_reinject nfqnl_recv_verdict nfnetlink_rcv_msg netlink_sendmsg",
            "ip_forward ip_rcv",
            "nf_hook_slow nf_hook_slow_list",
        ] {
            assert_eq!(hook(stack), None, "{stack}");
        }
    }
}
