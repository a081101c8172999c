//! What the running kernel's BTF says: struct offsets, names of drop reasons, arguments of tracepoints.
//!
//! Kernel versions are never compared: vendors backport. Offsets are found by name, through nested anonymous structs.

use std::{collections::BTreeMap, path::Path};

use btf_rs::{Backend, Btf, BtfType, Type};
use weir_common::{ABSENT, CONNTRACK_TUPLE, Layout};

/// What the agent needs to know of this kernel before it loads a probe.
#[derive(Clone, Debug)]
pub struct KernelTypes {
    /// For the probes' read-only data. Members that were not found are [`ABSENT`].
    pub layout: Layout,
    /// Members that were not found, for example `sock.sk_err`.
    pub missing: Vec<&'static str>,
    /// Value → name without `SKB_DROP_REASON_`, of all subsystems whose enums are in the BTF.
    pub drop_reasons: BTreeMap<u32, String>,
    /// Why nothing is known at all.
    pub unreadable: Option<BtfUnreadable>,
}

/// Why the kernel's types could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct BtfUnreadable {
    /// The file.
    pub path: String,
    /// What was wrong with it.
    pub reason: String,
}

impl KernelTypes {
    /// Reads `path` (normally `/sys/kernel/btf/vmlinux`) and, for types that live in a module, the files beside it.
    ///
    /// # Errors
    /// The file is missing or no BTF. Missing types are no error: they are listed in `missing`.
    pub fn read(path: &Path) -> Result<Self, BtfUnreadable> {
        let kernel = Kernel::open(path)?;
        let (layout, missing) = layout(&kernel);
        Ok(Self { layout, missing, drop_reasons: drop_reasons(&kernel), unreadable: None })
    }

    /// Of a kernel whose types cannot be read: nothing is known.
    #[must_use]
    pub fn unreadable(why: BtfUnreadable) -> Self {
        Self { layout: Layout::UNKNOWN, missing: Vec::new(), drop_reasons: BTreeMap::new(), unreadable: Some(why) }
    }
}

struct Kernel {
    base: Btf,
    folder: std::path::PathBuf,
}

impl Kernel {
    fn open(path: &Path) -> Result<Self, BtfUnreadable> {
        // Mapping /sys/kernel/btf/vmlinux saves parsing all of it where the kernel can.
        let base = Btf::from_file_with_backend(path, Backend::Mmap)
            .or_else(|_| Btf::from_file(path))
            .map_err(|error| BtfUnreadable { path: path.display().to_string(), reason: error.to_string() })?;
        Ok(Self { base, folder: path.parent().unwrap_or(Path::new("/")).to_owned() })
    }

    /// The BTF of one module, where the kernel offers it (5.11 and later, if configured).
    fn module(&self, name: &str) -> Option<Btf> {
        Btf::from_split_file(self.folder.join(name), &self.base).ok()
    }
}

fn layout(kernel: &Kernel) -> (Layout, Vec<&'static str>) {
    let mut missing = Vec::new();
    let mut at = |path: &'static str| {
        offset(&kernel.base, path).unwrap_or_else(|| {
            missing.push(path);
            ABSENT
        })
    };
    let error_queue = at("sock.sk_error_queue");
    let cb = at("sk_buff.cb");
    let exterr = at("sock_exterr_skb.ee");
    let mut layout = Layout {
        sock_family: at("sock.__sk_common.skc_family"),
        sock_state: at("sock.__sk_common.skc_state"),
        sock_num: at("sock.__sk_common.skc_num"),
        sock_dport: at("sock.__sk_common.skc_dport"),
        sock_daddr: at("sock.__sk_common.skc_daddr"),
        sock_rcv_saddr: at("sock.__sk_common.skc_rcv_saddr"),
        sock_v6_daddr: at("sock.__sk_common.skc_v6_daddr"),
        sock_v6_rcv_saddr: at("sock.__sk_common.skc_v6_rcv_saddr"),
        sock_net: at("sock.__sk_common.skc_net.net"),
        sock_protocol: at("sock.sk_protocol"),
        sock_err: at("sock.sk_err"),
        sock_err_soft: at("sock.sk_err_soft"),
        sock_error_tail: sum(error_queue, at("sk_buff_head.prev")),
        sock_error_len: sum(error_queue, at("sk_buff_head.qlen")),
        sock_incoming_cpu: at("sock.__sk_common.skc_incoming_cpu"),
        tcp_sport: at("tcp_sock.inet_conn.icsk_inet.inet_sport"),
        net_inum: at("net.ns.inum"),
        skb_error: sum(cb, exterr),
        skb_head: at("sk_buff.head"),
        skb_network_header: at("sk_buff.network_header"),
        skb_tail: at("sk_buff.tail"),
        skb_dev: at("sk_buff.dev"),
        skb_sock: at("sk_buff.sk"),
        skb_nfct: at("sk_buff._nfct"),
        net_hooks_v4: at("net.nf.hooks_ipv4"),
        net_hooks_v6: at("net.nf.hooks_ipv6"),
        hook_entries: at("nf_hook_entries.hooks"),
        skb_dst: at("sk_buff._skb_refdst"),
        dst_dev: at("dst_entry.dev"),
        conn_original: ABSENT,
        dev_index: at("net_device.ifindex"),
        dev_net: at("net_device.nd_net.net"),
        sock_stamp: at("sock.sk_stamp"),
        sock_waiting: at("sock.sk_backlog.rmem_alloc"),
        sock_kept: at("sock.sk_forward_alloc"),
        net_devices: at("net.dev_base_head"),
        dev_entry: at("net_device.dev_list"),
        dev_v4: at("net_device.ip_ptr"),
        v4_addresses: at("in_device.ifa_list"),
        v4_next: at("in_ifaddr.ifa_next"),
        v4_local: at("in_ifaddr.ifa_local"),
        dev_v6: at("net_device.ip6_ptr"),
        v6_addresses: at("inet6_dev.addr_list"),
        v6_entry: at("inet6_ifaddr.if_list"),
        v6_local: at("inet6_ifaddr.addr"),
        has_drop_reason: u32::from(has_drop_reason(&kernel.base)),
    };
    layout.conn_original = offset_of_original(&kernel.base)
        .or_else(|| offset_of_original(&kernel.module("nf_conntrack")?))
        .unwrap_or_else(|| {
            missing.push("nf_conn.tuplehash");
            ABSENT
        });
    (layout, missing)
}

fn sum(a: u32, b: u32) -> u32 {
    if a == ABSENT || b == ABSENT { ABSENT } else { a + b }
}

/// Where `nf_conn` keeps the tuple of the original direction, if that tuple looks as the probes expect it.
fn offset_of_original(btf: &Btf) -> Option<u32> {
    for (member, expected) in CONNTRACK_TUPLE {
        if member_offset(btf, struct_named(btf, "nf_conntrack_tuple")?, member)? != expected {
            return None;
        }
    }
    Some(offset(btf, "nf_conn.tuplehash")? + offset(btf, "nf_conntrack_tuple_hash.tuple")?)
}

/// Byte offset of `struct.member.member…`; `None` if there is no such struct, more than one, or no such member.
fn offset(btf: &Btf, path: &str) -> Option<u32> {
    let (name, members) = path.split_once('.')?;
    member_offset(btf, struct_named(btf, name)?, members)
}

fn member_offset(btf: &Btf, mut within: Type, path: &str) -> Option<u32> {
    let mut total = 0;
    for name in path.split('.') {
        let (offset, of) = member(btf, &within, name)?;
        total += offset;
        within = of;
    }
    Some(total)
}

/// The struct of that name. Two different ones are as good as none: which of them a pointer means cannot be told.
fn struct_named(btf: &Btf, name: &str) -> Option<Type> {
    let mut found = btf.resolve_types_by_name(name).ok()?.into_iter().filter(|ty| matches!(ty, Type::Struct(_)));
    let first = found.next()?;
    found.all(|other| same_size(&first, &other)).then_some(first)
}

fn same_size(a: &Type, b: &Type) -> bool {
    matches!((a, b), (Type::Struct(a), Type::Struct(b)) if a.size() == b.size())
}

/// A member of a struct or union, also of one nested in it without a name. Bit fields are no members with an offset.
fn member(btf: &Btf, within: &Type, name: &str) -> Option<(u32, Type)> {
    let (Type::Struct(of) | Type::Union(of)) = within else { return None };
    for member in &of.members {
        let found = btf.resolve_name(member).unwrap_or_default();
        let of = resolve(btf, member)?;
        let offset = member.bit_offset() / 8;
        if found == name {
            let whole = member.bit_offset() % 8 == 0 && member.bitfield_size().unwrap_or(0) == 0;
            return whole.then_some((offset, of));
        }
        if found.is_empty()
            && let Some((inner, of)) = self::member(btf, &of, name)
        {
            return Some((offset + inner, of));
        }
    }
    None
}

/// The type of a member without typedefs and qualifiers.
fn resolve(btf: &Btf, of: &dyn BtfType) -> Option<Type> {
    let mut found = btf.resolve_type_by_id(of.get_type_id()?).ok()?;
    loop {
        let next = match &found {
            Type::Typedef(ty) => ty.get_type_id(),
            Type::Volatile(ty) | Type::Const(ty) | Type::Restrict(ty) => ty.get_type_id(),
            Type::TypeTag(ty) => ty.get_type_id(),
            _ => return Some(found),
        };
        found = btf.resolve_type_by_id(next?).ok()?;
    }
}

/// Is the third argument of tracepoint `kfree_skb` an `enum skb_drop_reason`? (5.17, and vendors' 5.15.)
fn has_drop_reason(btf: &Btf) -> bool {
    let prototype = btf.resolve_types_by_name("btf_trace_kfree_skb").unwrap_or_default().into_iter().find_map(|ty| {
        let Type::Typedef(typedef) = ty else { return None };
        let Type::Ptr(pointer) = resolve(btf, &typedef)? else { return None };
        let Type::FuncProto(prototype) = resolve(btf, &pointer)? else { return None };
        Some(prototype)
    });
    // The first parameter of the prototype is the tracepoint's own data.
    let argument = prototype.as_ref().and_then(|prototype| prototype.parameters.get(3));
    let of = argument.and_then(|argument| resolve(btf, argument));
    matches!(of, Some(Type::Enum(of)) if btf.resolve_name(&of).is_ok_and(|name| name == "skb_drop_reason"))
}

/// Names by value. Subsystems' enums carry their subsystem in the high 16 bits of each value already.
fn drop_reasons(kernel: &Kernel) -> BTreeMap<u32, String> {
    let mut names = enum_values(&kernel.base, "skb_drop_reason");
    for (name, module) in [("ovs_drop_reason", "openvswitch"), ("mac80211_drop_reason", "mac80211")] {
        let mut values = enum_values(&kernel.base, name);
        if values.is_empty()
            && let Some(btf) = kernel.module(module)
        {
            values = enum_values(&btf, name);
        }
        names.append(&mut values);
    }
    names
}

fn enum_values(btf: &Btf, name: &str) -> BTreeMap<u32, String> {
    let Ok(types) = btf.resolve_types_by_name(name) else { return BTreeMap::new() };
    let members = types.iter().filter_map(|ty| match ty {
        Type::Enum(of) => Some(of.members.iter()),
        _ => None,
    });
    members
        .flatten()
        .filter_map(|member| {
            let name = btf.resolve_name(member).ok()?;
            Some((member.val(), name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name).to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On any machine with BTF; elsewhere there is nothing to read.
    #[test]
    fn the_running_kernel_is_understood() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            println!("skipped: this kernel has no BTF");
            return;
        }
        let types = KernelTypes::read(path).expect("BTF that the kernel made itself");
        assert_eq!(types.layout.sock_family, 16, "skc_family follows the address pair, hash and ports since 3.x");
        assert_ne!(types.layout.sock_state, ABSENT, "missing: {:?}", types.missing);
        assert_eq!(types.layout.sock_error_tail, types.layout.sock_error_len - 8);
        if types.layout.has_drop_reason == 1 {
            assert!(types.drop_reasons.values().any(|name| name == "NETFILTER_DROP"), "{:?}", types.drop_reasons);
        }
    }

    #[test]
    fn a_missing_file_names_itself() {
        let error = KernelTypes::read(Path::new("/nowhere/vmlinux")).expect_err("no such file");
        assert!(error.to_string().starts_with("/nowhere/vmlinux: "), "{error}");
    }
}
