//! As much of DNS as a query and its answer need (RFC 1035): enough to tell who answered.

use std::net::IpAddr;

const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;

/// A query for the A records of a name.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(id.to_be_bytes());
    packet.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        // Labels are up to 63 bytes long; longer ones cannot be asked for and are cut.
        let label = &label.as_bytes()[..label.len().min(63)];
        packet.push(label.len() as u8);
        packet.extend(label);
    }
    packet.push(0);
    packet.extend(TYPE_A.to_be_bytes());
    packet.extend(CLASS_IN.to_be_bytes());
    packet
}

/// The answer to a query: one record with the address of the server itself. None if it is no query.
pub fn answer(query: &[u8], server: IpAddr) -> Option<Vec<u8>> {
    let question = question(query)?;
    let (kind, data) = match server {
        IpAddr::V4(v4) => (TYPE_A, v4.octets().to_vec()),
        IpAddr::V6(v6) => (TYPE_AAAA, v6.octets().to_vec()),
    };
    let mut packet = Vec::new();
    packet.extend(&query[..2]);
    packet.extend([RESPONSE | query[2], 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    packet.extend(question);
    // The name is the question's, by a pointer to it (section 4.1.4).
    packet.extend([0xc0, HEADER as u8]);
    packet.extend(kind.to_be_bytes());
    packet.extend(CLASS_IN.to_be_bytes());
    packet.extend(5_u32.to_be_bytes());
    packet.extend((data.len() as u16).to_be_bytes());
    packet.extend(data);
    Some(packet)
}

/// The address in an answer to the query of this id.
pub fn answered(packet: &[u8], id: u16) -> Option<IpAddr> {
    if packet.get(..2)? != id.to_be_bytes() || packet.get(2)? & RESPONSE == 0 {
        return None;
    }
    let record = &packet.get(HEADER + question_len(packet)?..)?;
    let data = record.get(12..)?;
    match u16::from_be_bytes([*record.get(2)?, *record.get(3)?]) {
        TYPE_A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        TYPE_AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The one question of a query.
fn question(query: &[u8]) -> Option<&[u8]> {
    let is_query = *query.get(2)? & RESPONSE == 0 && query.get(4..6)? == [0, 1] && query.get(6..8)? == [0, 0];
    let length = question_len(query)?;
    is_query.then(|| query.get(HEADER..HEADER + length)).flatten()
}

fn question_len(packet: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *packet.get(at)? {
            0 => break,
            label @ 1..=63 => at += 1 + usize::from(label),
            _ => return None,
        }
    }
    let length = at + 1 + 4 - HEADER;
    (packet.len() >= HEADER + length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_names_the_server() {
        for server in ["100.64.0.2", "fd77::2"] {
            let server: IpAddr = server.parse().unwrap();
            let answer = answer(&query(7, "istiod.istio-system.svc"), server).unwrap();
            assert_eq!(answered(&answer, 7), Some(server));
            assert_eq!(answered(&answer, 8), None, "an answer to another query");
            assert_eq!(super::answer(&answer, server), None, "an answer is no query");
        }
    }

    #[test]
    fn other_bytes_are_no_query() {
        let server = IpAddr::from([127, 0, 0, 1]);
        for bytes in [&b""[..], b"ping", &[0; 12], &[0xff; 64]] {
            assert_eq!(answer(bytes, server), None, "{bytes:?}");
        }
    }
}
