//! The functions of libibverbs that are used here, found once, when it is opened.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::abi::*;
use crate::dynamic::table;

table! {
    /// libibverbs' functions.
    Functions {
        fork_init = "ibv_fork_init"() -> c_int;
        get_device_list = "ibv_get_device_list"(*mut c_int) -> *mut *mut ibv_device;
        free_device_list = "ibv_free_device_list"(*mut *mut ibv_device) -> ();
        get_device_name = "ibv_get_device_name"(*mut ibv_device) -> *const c_char;
        open_device = "ibv_open_device"(*mut ibv_device) -> *mut ibv_context;
        close_device = "ibv_close_device"(*mut ibv_context) -> c_int;
        query_device = "ibv_query_device"(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        query_port = "ibv_query_port"(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
        query_gid = "ibv_query_gid"(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
        query_pkey = "ibv_query_pkey"(*mut ibv_context, u8, c_int, *mut u16) -> c_int;
        alloc_pd = "ibv_alloc_pd"(*mut ibv_context) -> *mut ibv_pd;
        dealloc_pd = "ibv_dealloc_pd"(*mut ibv_pd) -> c_int;
        reg_mr = "ibv_reg_mr"(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        dereg_mr = "ibv_dereg_mr"(*mut ibv_mr) -> c_int;
        create_comp_channel = "ibv_create_comp_channel"(*mut ibv_context) -> *mut ibv_comp_channel;
        destroy_comp_channel = "ibv_destroy_comp_channel"(*mut ibv_comp_channel) -> c_int;
        create_cq = "ibv_create_cq"(
            *mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int,
        ) -> *mut ibv_cq;
        destroy_cq = "ibv_destroy_cq"(*mut ibv_cq) -> c_int;
        get_cq_event = "ibv_get_cq_event"(
            *mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void,
        ) -> c_int;
        ack_cq_events = "ibv_ack_cq_events"(*mut ibv_cq, c_uint) -> ();
        create_qp = "ibv_create_qp"(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        modify_qp = "ibv_modify_qp"(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        destroy_qp = "ibv_destroy_qp"(*mut ibv_qp) -> c_int;
    }
}
