//! Hosts with a network of their own: namespaces on one bridge, cut apart and healed with nftables.
//!
//! Not here: what runs on them. Needs root and `ip`; partitions need `nft`. All is gone when dropped.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{self, Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{process::installed, sidecar::Setup};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A bridge with hosts on it, in a namespace of its own so that the machine's network is left alone.
#[derive(Debug)]
pub struct Network {
    /// Prefix of every name made here.
    prefix: String,
    third: u8,
    hosts: Vec<String>,
}

impl Network {
    /// Makes the bridge. Errors with the reason when this machine cannot.
    pub fn new() -> Result<Network, String> {
        for program in ["ip", "nft"] {
            if !installed(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Network {
            prefix: format!("st{}n{number}", process::id()),
            third: (process::id() % 200) as u8 + number as u8,
            hosts: Vec::new(),
        };
        let middle = network.middle();
        ip(&["netns", "add", &middle])?;
        inside(&middle, &["ip", "link", "add", "br0", "type", "bridge"])?;
        inside(&middle, &["ip", "link", "set", "br0", "up"])?;
        Ok(network)
    }

    /// Adds a host and says its namespace and address.
    pub fn host(&mut self) -> Result<(String, Ipv4Addr), String> {
        let number = self.hosts.len() as u8 + 1;
        let name = format!("{}h{number}", self.prefix);
        let address = Ipv4Addr::new(10, 77, self.third, number);
        let middle = self.middle();
        ip(&["netns", "add", &name])?;
        self.hosts.push(name.clone());
        let port = format!("p{number}");
        ip(&[
            "link", "add", "eth0", "netns", &name, "type", "veth", "peer", "name", &port, "netns",
            &middle,
        ])?;
        inside(
            &middle,
            &["ip", "link", "set", &port, "master", "br0", "up"],
        )?;
        let with_prefix = format!("{address}/24");
        inside(&name, &["ip", "addr", "add", &with_prefix, "dev", "eth0"])?;
        inside(&name, &["ip", "link", "set", "eth0", "up"])?;
        inside(&name, &["ip", "link", "set", "lo", "up"])?;
        Ok((name, address))
    }

    /// Adds a host with a sidecar's setup on it, sealed with `key` (a gossip key in its written form).
    pub fn setup(&mut self, name: &str, zone: &str, key: &str) -> Result<Setup, String> {
        let (namespace, address) = self.host()?;
        Ok(Setup {
            address: IpAddr::V4(address),
            local: IpAddr::V4(Ipv4Addr::LOCALHOST),
            gossip: format!("key = \"{key}\""),
            namespace: Some(namespace),
            ..Setup::new(name, zone)
        })
    }

    /// Drops every packet between the hosts of `namespaces` and `others`, both ways, until healed.
    pub fn cut(&self, namespaces: &[&str], others: &[IpAddr]) -> Result<(), String> {
        self.drop_packets(namespaces, others, "")
    }

    /// The same, but only for TCP to `port` of `others`: everything else, gossip included, goes on.
    pub fn cut_port(
        &self,
        namespaces: &[&str],
        others: &[IpAddr],
        port: u16,
    ) -> Result<(), String> {
        self.drop_packets(namespaces, others, &format!("tcp dport {port}"))
    }

    fn drop_packets(
        &self,
        namespaces: &[&str],
        others: &[IpAddr],
        only: &str,
    ) -> Result<(), String> {
        let others: Vec<String> = others.iter().map(IpAddr::to_string).collect();
        let others = others.join(", ");
        for namespace in namespaces {
            let rules = format!(
                "table inet cut {{
                    chain in {{ type filter hook input priority 0; ip saddr {{ {others} }} {only} drop; }}
                    chain out {{ type filter hook output priority 0; ip daddr {{ {others} }} {only} drop; }}
                }}"
            );
            inside(namespace, &["nft", &rules])?;
        }
        Ok(())
    }

    /// Takes the cut away.
    pub fn heal(&self, namespaces: &[&str]) -> Result<(), String> {
        for namespace in namespaces {
            inside(namespace, &["nft", "delete table inet cut"])?;
        }
        Ok(())
    }

    fn middle(&self) -> String {
        format!("{}m", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = ip(&["netns", "del", host]);
        }
        let _ = ip(&["netns", "del", &self.middle()]);
    }
}

/// Takes away what test processes that were killed have left behind.
fn sweep() {
    let listed = ip(&["netns", "list"]).unwrap_or_default();
    for name in listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let process = name
            .strip_prefix("st")
            .and_then(|rest| rest.split_once('n'));
        let gone = process.is_some_and(|(id, _)| {
            id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists()
        });
        if gone {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// A command to be run in a namespace.
pub fn command(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

/// Runs a command in a namespace and gives its output. Errors when it fails, with what it said.
pub fn inside(namespace: &str, words: &[&str]) -> Result<String, String> {
    let mut command = command(namespace, words[0]);
    command.args(&words[1..]);
    run(&mut command)
}

fn ip(words: &[&str]) -> Result<String, String> {
    run(Command::new("ip").args(words))
}

fn run(command: &mut Command) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(format!(
        "{command:?}: {status}: {}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr).trim()
    ))
}
