//! The address that a packet from a network namespace must have.
//!
//! A socket that is neither bound nor connected has no address: the route gives each packet one. Where the namespace has but
//! one address of the family, as a pod's has, there is no choice. The lists are read as they are, without their locks: what is
//! changed meanwhile gives no address, or the one before.

use weir_common::ABSENT;

use crate::kernel::{copy, mapped, offset};

const MAX_DEVICES: usize = 16;
const MAX_ADDRESSES: usize = 8;

/// The only address of a `struct net` beside loopback and (IPv6) link-local ones; `None` if there are more, or none.
#[inline(always)]
pub fn only_address(net: u64, v4: bool) -> Option<[u32; 4]> {
    if !v4 && (offset!(dev_v6) == ABSENT || offset!(v6_addresses) == ABSENT || offset!(v6_local) == ABSENT) {
        return None;
    }
    let head = net + u64::from(offset!(net_devices));
    let mut entry: u64 = copy(head)?;
    let mut only = [0; 4];
    for _ in 0..MAX_DEVICES {
        if entry == head {
            return (only[3] != 0 || only[0] != 0).then_some(only);
        }
        let device = entry - u64::from(offset!(dev_entry));
        only = if v4 { of_device_v4(device, only)? } else { of_device_v6(device, only)? };
        entry = copy(entry)?;
    }
    None
}

/// The only address so far, with those of one more device.
#[inline(always)]
fn of_device_v4(device: u64, mut only: [u32; 4]) -> Option<[u32; 4]> {
    let addresses: u64 = copy(device + u64::from(offset!(dev_v4)))?;
    if addresses == 0 {
        return Some(only);
    }
    let mut entry: u64 = copy(addresses + u64::from(offset!(v4_addresses)))?;
    for _ in 0..MAX_ADDRESSES {
        if entry == 0 {
            return Some(only);
        }
        let address: u32 = copy(entry + u64::from(offset!(v4_local)))?;
        if u32::from_be(address) >> 24 != 127 {
            if only[3] != 0 {
                return None;
            }
            only = mapped(address);
        }
        entry = copy(entry + u64::from(offset!(v4_next)))?;
    }
    None
}

#[inline(always)]
fn of_device_v6(device: u64, mut only: [u32; 4]) -> Option<[u32; 4]> {
    let addresses: u64 = copy(device + u64::from(offset!(dev_v6)))?;
    if addresses == 0 {
        return Some(only);
    }
    let head = addresses + u64::from(offset!(v6_addresses));
    let mut entry: u64 = copy(head)?;
    for _ in 0..MAX_ADDRESSES {
        if entry == head {
            return Some(only);
        }
        let address: [u32; 4] = copy(entry - u64::from(offset!(v6_entry)) + u64::from(offset!(v6_local)))?;
        let first = u32::from_be(address[0]);
        // ::1 begins with zeroes, fe80::/10 is link-local.
        if first != 0 && first >> 22 != 0xfe80 >> 6 {
            if only[0] != 0 {
                return None;
            }
            only = address;
        }
        entry = copy(entry)?;
    }
    None
}
