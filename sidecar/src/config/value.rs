//! Single values: numbers with units, addresses, names; how each is read and how it is shown again.
//!
//! Not here: keys and tables (`read.rs`), and what values may say together (`check/`).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use mesh_core::policy::Weight;

use super::{ListenAddress, Network, fault::nearest, raw::Value};

/// Longest name of a service, instance, node or zone: all of them travel in every record.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest duration a key takes; a slip of the unit shows before a counter overflows.
pub const DURATION_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Longest path of a Unix socket that the kernel takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What is wrong with a value, and how to put it right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    pub what: String,
    pub fix: String,
}

impl Wrong {
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Wrong {
        Wrong {
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// Something that only a later version of Starling does.
    pub fn later(thing: &str) -> Wrong {
        Wrong::new(
            format!("{thing} is not in this version"),
            "remove it, or run a version that has it",
        )
    }
}

/// A kind of value a key may hold.
pub trait Setting: Sized {
    /// Reads a value whose references are filled in.
    fn read(value: &Value) -> Result<Self, Wrong>;
    /// The value as TOML.
    fn show(&self) -> String;
}

/// Fills in every `${env:X}`; yields the text and the names used.
pub fn fill(
    text: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(String, Vec<String>), Wrong> {
    let (mut filled, mut names, mut rest) = (String::new(), Vec::new(), text);
    while let Some(at) = rest.find("${") {
        filled.push_str(&rest[..at]);
        let Some((reference, after)) = rest[at + 2..].split_once('}') else {
            return Err(Wrong::new(
                format!("{text:?} has a \"${{\" without its \"}}\""),
                "write ${env:NAME}",
            ));
        };
        let Some(name) = reference.strip_prefix("env:") else {
            return Err(Wrong::new(
                format!("${{{reference}}} is no reference"),
                "write ${env:NAME}",
            ));
        };
        let Some(value) = env(name) else {
            return Err(Wrong::new(
                format!("the environment has no variable {name}"),
                format!("set {name} for the sidecar, or write the value itself"),
            ));
        };
        filled.push_str(&value);
        names.push(name.to_owned());
        rest = after;
    }
    filled.push_str(rest);
    Ok((filled, names))
}

/// A string as TOML.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_control() => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// A key as TOML: bare where it may be.
pub fn bare(key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if plain { key.to_owned() } else { quote(key) }
}

/// A path of keys as TOML.
pub fn dotted<'a>(path: impl Iterator<Item = &'a str>) -> String {
    // A key of the form `endpoints[1]` is how a list's item is called; it is nobody's key.
    path.map(|key| {
        if key.ends_with(']') {
            key.to_owned()
        } else {
            bare(key)
        }
    })
    .collect::<Vec<_>>()
    .join(".")
}

pub fn show_list<T: Setting>(items: &[T]) -> String {
    format!(
        "[{}]",
        items
            .iter()
            .map(Setting::show)
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// The text of a string, or what to write instead.
pub fn text<'a>(value: &'a Value, example: &str) -> Result<&'a str, Wrong> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Wrong::new(
            format!("{} is not a string", other.kind()),
            format!("write it like {example:?}"),
        )),
    }
}

/// One of several words.
pub fn word<T: Copy>(value: &Value, words: &[(&str, T)], later: &[&str]) -> Result<T, Wrong> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let text = text(value, names[0])?;
    if let Some((_, meaning)) = words.iter().find(|(name, _)| *name == text) {
        return Ok(*meaning);
    }
    if later.contains(&text) {
        return Err(Wrong::later(&format!("{text:?}")));
    }
    let fix = match nearest(text, &names) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!(
            "write one of {}",
            names
                .iter()
                .map(|name| quote(name))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    Err(Wrong::new(format!("{text:?} is unknown here"), fix))
}

/// The name that `word` reads as `meaning`.
pub fn name_of<T: Copy + PartialEq>(words: &[(&'static str, T)], meaning: T) -> String {
    let name = words
        .iter()
        .find(|(_, known)| *known == meaning)
        .map_or("", |(name, _)| name);
    quote(name)
}

/// A whole number between two bounds; a string of digits counts, so that it may come from the environment.
fn number<T>(value: &Value, least: u64, most: u64) -> Result<T, Wrong>
where
    T: TryFrom<i128>,
{
    let fix = || {
        if most == u64::from(u32::MAX) {
            format!("write a whole number, at least {least}")
        } else {
            format!("write a whole number from {least} to {most}")
        }
    };
    let number = match value {
        Value::Integer(number) => *number,
        Value::String(text) => text
            .trim()
            .parse()
            .map_err(|_| Wrong::new(format!("{text:?} is not a whole number"), fix()))?,
        other => {
            return Err(Wrong::new(
                format!("{} is not a whole number", other.kind()),
                fix(),
            ));
        }
    };
    let fits = (i128::from(least)..=i128::from(most)).contains(&number);
    match T::try_from(number) {
        Ok(value) if fits => Ok(value),
        _ => Err(Wrong::new(format!("{number} is out of range"), fix())),
    }
}

/// Splits `"250ms"` into 250 and `"ms"`.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    Some((text[..at].parse().ok()?, text[at..].trim_start()))
}

impl Setting for bool {
    fn read(value: &Value) -> Result<bool, Wrong> {
        match value {
            Value::Bool(flag) => Ok(*flag),
            Value::String(text) if text == "true" => Ok(true),
            Value::String(text) if text == "false" => Ok(false),
            other => Err(Wrong::new(
                format!("{} is neither true nor false", other.kind()),
                "write true or false",
            )),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A count that is at least 1.
impl Setting for u32 {
    fn read(value: &Value) -> Result<u32, Wrong> {
        number(value, 1, u32::MAX.into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A count that may be 0.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub u32);

impl Setting for Count {
    fn read(value: &Value) -> Result<Count, Wrong> {
        number(value, 0, u32::MAX.into()).map(Count)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// A count up to 10 that may be 0: more repeats than that only make an outage worse.
impl Setting for u8 {
    fn read(value: &Value) -> Result<u8, Wrong> {
        number(value, 0, 10)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A port.
impl Setting for u16 {
    fn read(value: &Value) -> Result<u16, Wrong> {
        number(value, 1, 65_535)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Worker threads.
impl Setting for usize {
    fn read(value: &Value) -> Result<usize, Wrong> {
        number(value, 1, 64)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for Weight {
    fn read(value: &Value) -> Result<Weight, Wrong> {
        let weight = number(value, 1, 65_535).map_err(|wrong| {
            Wrong::new(
                wrong.what,
                format!("{}; to take it out of service, drain it", wrong.fix),
            )
        })?;
        Weight::new(weight).ok_or_else(|| Wrong::new("0 is no weight", "write at least 1"))
    }

    fn show(&self) -> String {
        self.get().to_string()
    }
}

impl Setting for Duration {
    fn read(value: &Value) -> Result<Duration, Wrong> {
        if let Value::Integer(number) = value {
            return Err(Wrong::new(
                format!("{number} has no unit"),
                format!("write \"{number}s\" or \"{number}ms\""),
            ));
        }
        let whole = text(value, "250ms")?;
        let wrong = |what: &str| {
            Err(Wrong::new(
                format!("{whole:?} {what}"),
                "write it like \"250ms\", \"2s\" or \"5m\"",
            ))
        };
        let (mut total, mut rest) = (Duration::ZERO, whole.trim());
        if rest.is_empty() {
            return wrong("is no duration");
        }
        while !rest.is_empty() {
            let Some((number, after)) = split_unit(rest) else {
                return wrong("is no duration with a unit");
            };
            let end = after
                .find(|letter: char| letter.is_ascii_digit())
                .unwrap_or(after.len());
            let seconds = match after[..end].trim() {
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return wrong("has no unit that is known"),
            };
            // Whole microseconds, so that 0.001 s is shown as it was written.
            let micros = (number * seconds * 1e6).round();
            if micros > DURATION_MAX.as_micros() as f64 {
                return wrong("is longer than 30 days");
            }
            total += Duration::from_micros(micros as u64);
            rest = after[end..].trim_start();
        }
        Ok(total)
    }

    fn show(&self) -> String {
        let micros = self.as_micros();
        let units: [(u128, &str); 4] = [
            (3_600_000_000, "h"),
            (60_000_000, "m"),
            (1_000_000, "s"),
            (1_000, "ms"),
        ];
        let (size, unit) = units
            .into_iter()
            .find(|(size, _)| micros >= *size && micros.is_multiple_of(*size))
            .unwrap_or((1, "us"));
        if micros == 0 {
            "\"0s\"".to_owned()
        } else {
            format!("\"{}{unit}\"", micros / size)
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes(pub usize);

impl Setting for Bytes {
    fn read(value: &Value) -> Result<Bytes, Wrong> {
        if let Value::Integer(number) = value {
            return Err(Wrong::new(
                format!("{number} has no unit"),
                format!("write \"{number}B\" or \"{number}KiB\""),
            ));
        }
        let whole = text(value, "64KiB")?;
        let wrong = |what: &str| {
            Wrong::new(
                format!("{whole:?} {what}"),
                "write it like \"64KiB\" or \"1MiB\"",
            )
        };
        let (number, unit) =
            split_unit(whole.trim()).ok_or_else(|| wrong("is no size with a unit"))?;
        let size = match unit {
            "B" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            _ => return Err(wrong("has no unit that is known")),
        };
        Ok(Bytes((number * size) as usize))
    }

    fn show(&self) -> String {
        let units = [(1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];
        let (size, unit) = units
            .into_iter()
            .find(|(size, _)| self.0 >= *size && self.0.is_multiple_of(*size))
            .unwrap_or((1, "B"));
        format!("\"{}{unit}\"", self.0 / size)
    }
}

/// A share between 0 and 1, written in percent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share(pub f64);

impl Share {
    pub fn parse(text: &str) -> Option<Share> {
        let percent: f64 = text.trim().strip_suffix('%')?.trim_end().parse().ok()?;
        (0.0..=100.0)
            .contains(&percent)
            .then_some(Share(percent / 100.0))
    }
}

impl Setting for Share {
    fn read(value: &Value) -> Result<Share, Wrong> {
        let fix = "write \"0%\" to \"100%\"";
        let text = match value {
            Value::String(text) => text,
            other => return Err(Wrong::new(format!("{} is not a share", other.kind()), fix)),
        };
        Share::parse(text).ok_or_else(|| Wrong::new(format!("{text:?} is not a share"), fix))
    }

    fn show(&self) -> String {
        format!("\"{}%\"", rounded(self.0 * 100.0))
    }
}

/// So many a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate(pub f64);

impl Rate {
    pub fn parse(text: &str) -> Option<Rate> {
        let (number, unit) = text.trim().split_once('/')?;
        let number: f64 = number.trim_end().parse().ok()?;
        let seconds = match unit.trim_start() {
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        (number.is_finite() && number >= 0.0).then_some(Rate(number / seconds))
    }
}

impl Setting for Rate {
    fn read(value: &Value) -> Result<Rate, Wrong> {
        let fix = "write it like \"500/s\" or \"30/m\"";
        let text = match value {
            Value::String(text) => text,
            other => return Err(Wrong::new(format!("{} is not a rate", other.kind()), fix)),
        };
        Rate::parse(text).ok_or_else(|| Wrong::new(format!("{text:?} is not a rate"), fix))
    }

    fn show(&self) -> String {
        format!("\"{}/s\"", rounded(self.0))
    }
}

/// A number without the dust of binary fractions.
pub fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

impl Setting for Box<str> {
    fn read(value: &Value) -> Result<Box<str>, Wrong> {
        text(value, "some words").map(Into::into)
    }

    fn show(&self) -> String {
        quote(self)
    }
}

impl Setting for PathBuf {
    fn read(value: &Value) -> Result<PathBuf, Wrong> {
        match text(value, "/var/lib/starling")? {
            "" => Err(Wrong::new(
                "an empty path names nothing",
                "write a path, or drop the line",
            )),
            text => Ok(PathBuf::from(text)),
        }
    }

    fn show(&self) -> String {
        quote(&self.display().to_string())
    }
}

/// A path of a Unix socket.
pub fn socket_path(path: &str) -> Result<PathBuf, Wrong> {
    if !path.starts_with('/') {
        return Err(Wrong::new(
            format!("{path:?} is not a whole path"),
            "write the socket's path from the root",
        ));
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(Wrong::new(
            format!(
                "a socket's path of {} bytes is too long for the kernel",
                path.len()
            ),
            format!("use at most {SOCKET_PATH_BYTES_MAX} bytes"),
        ));
    }
    Ok(PathBuf::from(path))
}

/// The name of a service or an upstream: part of an authority, so it is a host name in lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceName(pub Box<str>);

impl ServiceName {
    pub fn parse(text: &str) -> Result<ServiceName, Wrong> {
        let fix = "use lower-case letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit, at most 63";
        let well = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            });
        if well {
            Ok(ServiceName(text.into()))
        } else {
            Err(Wrong::new(
                format!("{text:?} cannot be called by name"),
                fix,
            ))
        }
    }
}

impl Setting for ServiceName {
    fn read(value: &Value) -> Result<ServiceName, Wrong> {
        ServiceName::parse(text(value, "payments")?)
    }

    fn show(&self) -> String {
        quote(&self.0)
    }
}

/// The name of a node, zone, region, cluster or instance: one printable word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label(pub Box<str>);

impl Setting for Label {
    fn read(value: &Value) -> Result<Label, Wrong> {
        let text = text(value, "eu-1a")?;
        let well = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"\"\\/,".contains(&byte));
        if well {
            Ok(Label(text.into()))
        } else {
            Err(Wrong::new(
                format!("{text:?} is not a name"),
                "use 1 to 63 letters, digits and signs, without spaces, quotes, slashes and commas",
            ))
        }
    }

    fn show(&self) -> String {
        quote(&self.0)
    }
}

impl Setting for IpAddr {
    fn read(value: &Value) -> Result<IpAddr, Wrong> {
        let text = text(value, "10.0.0.5")?;
        text.parse().map_err(|_| {
            Wrong::new(
                format!("{text:?} is not an IP address"),
                "write it like \"10.0.0.5\" or \"fd00::5\"",
            )
        })
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

impl Setting for SocketAddr {
    fn read(value: &Value) -> Result<SocketAddr, Wrong> {
        let text = text(value, "127.0.0.1:8080")?;
        text.parse().map_err(|_| {
            Wrong::new(
                format!("{text:?} is not an address with a port"),
                address_fix(text),
            )
        })
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

fn address_fix(text: &str) -> String {
    let port = text
        .rsplit(':')
        .next()
        .and_then(|port| port.parse::<u16>().ok());
    match (text.parse::<IpAddr>(), port) {
        (Ok(ip), _) => format!("add a port: \"{}\"", SocketAddr::new(ip, 8080)),
        (_, Some(port)) if text.starts_with("localhost:") => format!("write \"127.0.0.1:{port}\""),
        (_, Some(port)) if text.starts_with([':', '*']) => {
            format!("write \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for every interface")
        }
        (_, Some(port)) => format!(
            "write the address itself: names are not looked up here, as in \"10.0.0.5:{port}\""
        ),
        _ => "write it like \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
    }
}

impl Setting for ListenAddress {
    fn read(value: &Value) -> Result<ListenAddress, Wrong> {
        match text(value, "127.0.0.1:7080")?.strip_prefix("unix:") {
            Some(path) => socket_path(path).map(ListenAddress::Unix),
            None => SocketAddr::read(value).map(ListenAddress::Tcp),
        }
    }

    fn show(&self) -> String {
        match self {
            ListenAddress::Tcp(address) => quote(&address.to_string()),
            ListenAddress::Unix(path) => quote(&format!("unix:{}", path.display())),
        }
    }
}

impl Setting for Network {
    fn read(value: &Value) -> Result<Network, Wrong> {
        let whole = text(value, "10.0.0.0/8")?;
        let wrong = |what: &str| {
            Wrong::new(
                format!("{whole:?} {what}"),
                "write it like \"172.26.64.0/20\" or \"fd00::/8\"",
            )
        };
        let (address, bits) = match whole.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (whole, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong("is not a network"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits.parse().map_err(|_| wrong("has no prefix length"))?,
        };
        if bits > width {
            return Err(wrong(&format!("has more than {width} bits")));
        }
        let network = Network {
            address: masked(address, bits),
            bits,
        };
        if network.address != address {
            return Err(Wrong::new(
                format!("{whole:?} has bits beyond its prefix"),
                format!(
                    "write {}, or \"{address}/{width}\" for one host",
                    network.show()
                ),
            ));
        }
        Ok(network)
    }

    fn show(&self) -> String {
        quote(&format!("{}/{}", self.address, self.bits))
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// Splits `host:port`, filling in a port where one is known; brackets of IPv6 literals are taken off.
pub fn host_and_port(text: &str, default: Option<u16>) -> Result<(Box<str>, u16), Wrong> {
    let wrong = |what: &str| {
        let example = if default.is_some() {
            "\"10.0.0.11\" or \"seed.internal:7946\""
        } else {
            "\"db.internal:5432\""
        };
        Wrong::new(
            format!("{text:?} {what}"),
            format!("write it like {example}"),
        )
    };
    let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
        (address.ip().to_string(), Some(address.port()))
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        (ip.to_string(), None)
    } else if let Some((host, port)) = text.rsplit_once(':') {
        let port = port
            .parse()
            .map_err(|_| wrong("has no port that is a number"))?;
        (host.to_owned(), Some(port))
    } else {
        (text.to_owned(), None)
    };
    let port = port.or(default).ok_or_else(|| wrong("has no port"))?;
    if port == 0 {
        return Err(wrong("has port 0"));
    }
    let well = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if !well {
        return Err(wrong("has no host name"));
    }
    Ok((host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Setting>(text: &str) -> Result<T, Wrong> {
        T::read(&Value::String(text.to_owned()))
    }

    #[test]
    fn durations_are_read_and_shown_with_their_units() {
        for (written, shown) in [
            ("250ms", "\"250ms\""),
            ("1.5s", "\"1500ms\""),
            ("1m30s", "\"90s\""),
            ("5m", "\"5m\""),
            ("0s", "\"0s\""),
            ("10us", "\"10us\""),
        ] {
            assert_eq!(read::<Duration>(written).unwrap().show(), shown);
        }
        for wrong in ["", "5", "s", "5 parsecs", "-1s", "1..5s", "9999d"] {
            assert!(read::<Duration>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_rates_and_sizes_survive_being_shown() {
        assert_eq!(read::<Share>("12.5%").unwrap().show(), "\"12.5%\"");
        assert_eq!(read::<Rate>("30/m").unwrap(), Rate(0.5));
        assert_eq!(read::<Bytes>("64KiB").unwrap(), Bytes(65_536));
        assert_eq!(Bytes(65_536).show(), "\"64KiB\"");
        assert!(read::<Share>("120%").is_err());
        assert!(read::<Bytes>("64").is_err());
    }

    #[test]
    fn a_network_with_stray_bits_is_refused_with_the_right_one() {
        let wrong = read::<Network>("172.26.64.9/20").unwrap_err();
        assert!(wrong.fix.contains("172.26.64.0/20"), "{wrong:?}");
        assert_eq!(read::<Network>("10.0.0.1").unwrap().bits, 32);
        assert_eq!(read::<Network>("::/0").unwrap().bits, 0);
    }

    #[test]
    fn references_are_filled_in_or_refused() {
        let env = |name: &str| (name == "PORT").then(|| "80".to_owned());
        assert_eq!(
            fill("a:${env:PORT}", env).unwrap(),
            ("a:80".to_owned(), vec!["PORT".to_owned()])
        );
        for wrong in ["${env:NONE}", "${PORT}", "${env:PORT"] {
            assert!(fill(wrong, env).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seeds_may_leave_their_port_out() {
        assert_eq!(
            host_and_port("10.0.0.1", Some(7946)).unwrap(),
            ("10.0.0.1".into(), 7946)
        );
        assert_eq!(
            host_and_port("fd00::1", Some(7946)).unwrap(),
            ("fd00::1".into(), 7946)
        );
        assert_eq!(
            host_and_port("[fd00::1]:9", None).unwrap(),
            ("fd00::1".into(), 9)
        );
        assert_eq!(host_and_port("seed:9", None).unwrap(), ("seed".into(), 9));
        assert!(host_and_port("seed", None).is_err());
        assert!(host_and_port("two words", Some(1)).is_err());
    }
}
