//! The test harness: topologies of network namespaces, servers, clients and a small CNI of its own.
