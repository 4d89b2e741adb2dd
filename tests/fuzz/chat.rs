//! The program's modules around chat templates, as far as they need no process.
#![allow(dead_code)]

#[path = "../../tools/chat/bounds.rs"]
pub mod bounds;
#[path = "../../tools/chat/json.rs"]
mod json;
#[path = "../../tools/chat/python.rs"]
mod python;
#[path = "../../tools/chat/render.rs"]
mod render;
#[path = "../../tools/chat/tags.rs"]
pub mod tags;
