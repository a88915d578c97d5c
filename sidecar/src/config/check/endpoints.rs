//! `upstream.*.endpoints`: fixed addresses, names, and the mesh among them.
//!
//! Not here: whether an endpoint is one of this sidecar's own listeners (`rules.rs`).

use mesh_core::policy::{FixedEndpoint, Place, Weight};

use crate::config::{
    raw::{Raw, Value},
    read::{Keys, table_of},
    value::{self, Label, Wrong},
};

/// Fixed endpoints of one upstream; a name may still resolve to many.
const ENDPOINTS_MAX: usize = 1024;

/// Whether the mesh's own instances are listed, and the fixed endpoints.
pub fn endpoints(keys: &Keys<'_>) -> (bool, Vec<FixedEndpoint>) {
    let Some(raw) = keys.raw("endpoints") else {
        return (false, Vec::new());
    };
    let items = match &raw.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(raw),
    };
    if items.is_empty() || items.len() > ENDPOINTS_MAX {
        keys.wrong(
            "endpoints",
            format!("{} endpoints are not 1 to {ENDPOINTS_MAX}", items.len()),
            "write them like [\"10.0.9.1:5432\"], or drop the line to call the mesh service of this name",
        );
        return (false, Vec::new());
    }
    let (mut mesh, mut fixed, mut shown) = (false, Vec::new(), Vec::new());
    for (at, item) in items.iter().enumerate() {
        match endpoint(keys, at, item) {
            Some(Listed::Mesh) => {
                mesh = true;
                shown.push("\"mesh\"".to_owned());
            }
            Some(Listed::Fixed(endpoint)) => {
                if fixed
                    .iter()
                    .any(|known: &FixedEndpoint| known.place == endpoint.place)
                {
                    let wrong = Wrong::new(
                        format!("{} stands there twice", show_place(&endpoint.place)),
                        "keep one of them",
                    );
                    keys.wrong_at(item.place.clone(), "endpoints", wrong);
                }
                shown.push(show_endpoint(&endpoint));
                fixed.push(endpoint);
            }
            None => {}
        }
    }
    keys.note_written("endpoints", format!("[{}]", shown.join(", ")));
    (mesh, fixed)
}

enum Listed {
    Mesh,
    Fixed(FixedEndpoint),
}

fn endpoint(keys: &Keys<'_>, at: usize, item: &Raw) -> Option<Listed> {
    let Some(table) = table_of(item) else {
        let (place, _) = keys.parsed_with("endpoints", item, |value| {
            let text = value::text(value, "10.0.9.1:5432")?;
            if text == "mesh" {
                Ok(None)
            } else {
                place(text).map(Some)
            }
        })?;
        return Some(match place {
            None => Listed::Mesh,
            Some(place) => Listed::Fixed(FixedEndpoint {
                place,
                zone: None,
                weight: Weight::DEFAULT,
                backup: false,
            }),
        });
    };
    let inner = keys.item("endpoints", at, table, item.place.clone());
    let address = inner.optional::<Box<str>>("address");
    if !inner.has("address") {
        inner.absent(
            "address",
            "it does not say where the endpoint is",
            "add address = \"10.0.9.9:5432\"",
        );
    }
    let place = address.and_then(|text| match place(&text) {
        Ok(place) => Some(place),
        Err(wrong) => {
            inner.wrong("address", wrong.what, wrong.fix);
            None
        }
    });
    let zone = inner.optional::<Label>("zone").map(|Label(zone)| zone);
    let weight = inner.optional("weight").unwrap_or(Weight::DEFAULT);
    let backup = inner.optional("backup").unwrap_or(false);
    inner.done();
    Some(Listed::Fixed(FixedEndpoint {
        place: place?,
        zone,
        weight,
        backup,
    }))
}

fn place(text: &str) -> Result<Place, Wrong> {
    let (host, port) = value::host_and_port(text, None)?;
    match host.parse() {
        Ok(ip) => {
            let address = std::net::SocketAddr::new(ip, port);
            super::callable(address)?;
            Ok(Place::Address(address))
        }
        Err(_) => Ok(Place::Name { host, port }),
    }
}

fn show_place(place: &Place) -> String {
    match place {
        Place::Address(address) => value::quote(&address.to_string()),
        Place::Name { host, port } => value::quote(&format!("{host}:{port}")),
    }
}

fn show_endpoint(endpoint: &FixedEndpoint) -> String {
    let plain = endpoint.zone.is_none() && endpoint.weight == Weight::DEFAULT && !endpoint.backup;
    if plain {
        return show_place(&endpoint.place);
    }
    let zone = endpoint.zone.as_ref().map_or(String::new(), |zone| {
        format!(", zone = {}", value::quote(zone))
    });
    let (weight, backup) = (endpoint.weight.get(), endpoint.backup);
    format!(
        "{{ address = {}{zone}, weight = {weight}, backup = {backup} }}",
        show_place(&endpoint.place)
    )
}
