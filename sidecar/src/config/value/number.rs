//! Counts, durations, sizes, shares and rates.
//!
//! Not here: which key holds which.

use std::time::Duration;

use mesh_core::policy::Weight;

use super::{Setting, Value, Wrong, text};

/// Longest duration a key takes; a slip of the unit shows before a counter overflows.
pub const DURATION_MAX: Duration = Duration::from_secs(30 * 86_400);

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

/// Repeats, 0 to 10: more than that only make an outage worse.
#[derive(Clone, Copy, Debug)]
pub struct Retries(pub u8);

impl Setting for Retries {
    fn read(value: &Value) -> Result<Retries, Wrong> {
        number(value, 0, 10).map(Retries)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// A port that can be called.
#[derive(Clone, Copy, Debug)]
pub struct Port(pub u16);

impl Setting for Port {
    fn read(value: &Value) -> Result<Port, Wrong> {
        number(value, 1, 65_535).map(Port)
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// Worker threads, 1 to 64: a sidecar is a guest on its host.
#[derive(Clone, Copy, Debug)]
pub struct Workers(pub usize);

impl Setting for Workers {
    fn read(value: &Value) -> Result<Workers, Wrong> {
        number(value, 1, 64).map(Workers)
    }

    fn show(&self) -> String {
        self.0.to_string()
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

/// A duration, or `"never"`: without end.
#[derive(Clone, Copy, Debug)]
pub struct Lasting(pub Option<Duration>);

impl Setting for Lasting {
    fn read(value: &Value) -> Result<Lasting, Wrong> {
        if matches!(value, Value::String(text) if text.trim() == "never") {
            return Ok(Lasting(None));
        }
        match Duration::read(value) {
            Ok(span) => Ok(Lasting(Some(span))),
            Err(wrong) => Err(Wrong::new(
                wrong.what,
                format!("{}, or \"never\"", wrong.fix),
            )),
        }
    }

    fn show(&self) -> String {
        self.0
            .map_or_else(|| super::quote("never"), |span| span.show())
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
