//! Our declarations of libibverbs against those of its header, as the crate ibverbs-sys has them:
//!
//!     cargo test --features ibverbs-sys --test verbs_abi -- --nocapture
//!
//! Nothing is called, so that no libibverbs need be there. What is compared is held against the text of
//! our declarations: none is left out.

use std::any::type_name;
use std::collections::BTreeSet;
use std::mem::{align_of, offset_of, size_of};

use mlxd::verbs::abi;
use mlxd::verbs::functions::Functions;

/// Bytes of a field.
fn width<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Compares structs, field by field: `name { field, ours = theirs }`.
macro_rules! layouts {
    ($compared:ident: $($name:ident { $($field:ident $(= $theirs:ident)?),* $(,)? })*) => {$(
        assert_eq!(size_of::<abi::$name>(), size_of::<ibverbs_sys::$name>(), stringify!($name));
        assert_eq!(align_of::<abi::$name>(), align_of::<ibverbs_sys::$name>(), stringify!($name));
        $compared.insert(stringify!($name).to_owned());
        $(layouts!(@field $compared $name $field $($theirs)?);)*
    )*};
    (@field $compared:ident $name:ident $field:ident) => {
        layouts!(@field $compared $name $field $field)
    };
    (@field $compared:ident $name:ident $field:ident $theirs:ident) => {
        let field = concat!(stringify!($name), ".", stringify!($field));
        assert_eq!(
            offset_of!(abi::$name, $field),
            offset_of!(ibverbs_sys::$name, $theirs),
            "offset of {field}"
        );
        // Of ours a field may be the padding of theirs, too: then the next offset tells.
        assert_eq!(
            width(|value: &abi::$name| &value.$field),
            width(|value: &ibverbs_sys::$name| &value.$theirs),
            "size of {field}"
        );
        $compared.insert(field.to_owned());
    };
}

/// `struct` and `struct.field` of every declaration in the text of `src/verbs/abi.rs`.
fn declared() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut within = None;
    for line in include_str!("../src/verbs/abi.rs").lines() {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.trim_end_matches(" {");
            all.insert(name.to_owned());
            within = Some(name);
        } else if line == "}" {
            within = None;
        } else if let (Some(name), Some(rest)) = (within, line.strip_prefix("    pub "))
            && let Some((field, _)) = rest.split_once(':')
        {
            all.insert(format!("{name}.{field}"));
        }
    }
    all
}

#[test]
fn layouts_are_theirs() {
    let mut compared = BTreeSet::new();
    layouts! { compared:
        ibv_context_ops {
            _compat_query_device, _compat_query_port, _compat_alloc_pd, _compat_dealloc_pd,
            _compat_reg_mr, _compat_rereg_mr, _compat_dereg_mr, alloc_mw, bind_mw, dealloc_mw,
            _compat_create_cq, poll_cq, req_notify_cq, _compat_cq_event, _compat_resize_cq,
            _compat_destroy_cq, _compat_create_srq, _compat_modify_srq, _compat_query_srq,
            _compat_destroy_srq, post_srq_recv, _compat_create_qp, _compat_query_qp,
            _compat_modify_qp, _compat_destroy_qp, post_send, post_recv, _compat_create_ah,
            _compat_destroy_ah, _compat_attach_mcast, _compat_detach_mcast, _compat_async_event,
        }
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
        ibv_device_attr {
            fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id,
            vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd,
            max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom,
            max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw,
            max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach,
            max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr,
            max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt,
        }
        ibv_port_attr {
            state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
            qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
            init_type_reply, active_width, active_speed, phys_state, link_layer, flags,
            port_cap_flags2, active_speed_ex,
        }
        ibv_pd { context, handle }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_comp_channel { context, fd, refcnt }
        ibv_cq {
            context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed,
            async_events_completed,
        }
        ibv_qp {
            context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex,
            cond, events_completed,
        }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
        ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
            qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index,
            en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
            port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit,
        }
        ibv_sge { addr, length, lkey }
        ibv_send_wr {
            wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data = __bindgen_anon_1, wr,
            qp_type, bind_mw = __bindgen_anon_2,
        }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_gid {}
    }
    assert_eq!(offset_of!(abi::ibv_gid, raw), offset_of!(ibverbs_sys::ibv_gid, raw));
    compared.insert("ibv_gid.raw".to_owned());
    compare_completions(&mut compared);
    // Only its address is used.
    compared.insert("ibv_device".to_owned());
    compared.insert("ibv_device._opaque".to_owned());
    let mut declared = declared();
    declared.insert("ibv_device._opaque".to_owned());
    assert_eq!(compared, declared);
    let structs = compared.iter().filter(|name| !name.contains('.')).count();
    println!("{structs} structs with {} fields equal", compared.len() - structs);
}

/// Completions: some of their fields are private there, so that values tell where they are.
fn compare_completions(compared: &mut BTreeSet<String>) {
    layouts! { compared:
        ibv_wc { imm_data, qp_num, src_qp, wc_flags, pkey_index, slid, sl, dlid_path_bits }
    }
    let ours = abi::ibv_wc {
        wr_id: 0x0102_0304_0506_0708,
        status: abi::IBV_WC_RETRY_EXC_ERR,
        opcode: ibverbs_sys::ibv_wc_opcode::IBV_WC_RECV,
        vendor_err: 0x1112_1314,
        byte_len: 0x2122_2324,
        ..abi::ibv_wc::default()
    };
    // SAFETY: both are plain numbers, of the same size, as was compared above.
    let theirs: ibverbs_sys::ibv_wc = unsafe { std::mem::transmute(ours) };
    assert_eq!(theirs.wr_id(), ours.wr_id);
    assert_eq!(theirs.error(), Some((ours.status, ours.vendor_err)));
    assert_eq!(theirs.opcode(), ours.opcode);
    assert_eq!(theirs.len(), ours.byte_len as usize);
    for field in ["wr_id", "status", "opcode", "vendor_err", "byte_len"] {
        compared.insert(format!("ibv_wc.{field}"));
    }
}

/// Compares constants with what the header calls them; where they are bits, as numbers.
macro_rules! constants {
    ($($module:ident { $($name:ident),* $(,)? })*) => {
        vec![$($((
            stringify!($name),
            u64::from(abi::$name),
            u64::from(ibverbs_sys::$module::$name),
        )),*),*]
    };
    (bits $($module:ident { $($name:ident),* $(,)? })*) => {
        vec![$($((
            stringify!($name),
            u64::from(abi::$name),
            u64::from(ibverbs_sys::$module::$name.0),
        )),*),*]
    };
}

#[test]
fn constants_are_theirs() {
    let mut all = constants! {
        ibv_port_state {
            IBV_PORT_DOWN, IBV_PORT_INIT, IBV_PORT_ARMED, IBV_PORT_ACTIVE, IBV_PORT_ACTIVE_DEFER,
        }
        ibv_qp_type { IBV_QPT_RC, IBV_QPT_UC }
        ibv_qp_state { IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR }
        ibv_wr_opcode { IBV_WR_RDMA_WRITE, IBV_WR_SEND }
        ibv_wc_status {
            IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR,
        }
    };
    all.extend(constants! { bits
        ibv_access_flags { IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE }
        ibv_send_flags { IBV_SEND_SIGNALED, IBV_SEND_INLINE }
        ibv_qp_attr_mask {
            IBV_QP_STATE, IBV_QP_ACCESS_FLAGS, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_AV,
            IBV_QP_PATH_MTU, IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_RQ_PSN,
            IBV_QP_MAX_QP_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER, IBV_QP_SQ_PSN,
            IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_DEST_QPN,
        }
    });
    let layer = |name, ours: u8, theirs| (name, u64::from(ours), u64::from(theirs));
    all.extend([
        layer(
            "IBV_LINK_LAYER_UNSPECIFIED",
            abi::IBV_LINK_LAYER_UNSPECIFIED,
            ibverbs_sys::IBV_LINK_LAYER_UNSPECIFIED,
        ),
        layer(
            "IBV_LINK_LAYER_INFINIBAND",
            abi::IBV_LINK_LAYER_INFINIBAND,
            ibverbs_sys::IBV_LINK_LAYER_INFINIBAND,
        ),
        layer(
            "IBV_LINK_LAYER_ETHERNET",
            abi::IBV_LINK_LAYER_ETHERNET,
            ibverbs_sys::IBV_LINK_LAYER_ETHERNET,
        ),
    ]);
    let (ours, theirs) = (abi::IBV_FORK_UNNEEDED, ibverbs_sys::IBV_FORK_UNNEEDED);
    all.push(("IBV_FORK_UNNEEDED", ours.into(), theirs.into()));
    for (name, ours, theirs) in &all {
        assert_eq!(ours, theirs, "{name}");
    }
    let compared: BTreeSet<&str> = all.iter().map(|(name, ..)| *name).collect();
    let declared: BTreeSet<&str> = include_str!("../src/verbs/abi.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const IBV_").and(line.split([' ', ':']).nth(2)))
        .collect();
    assert_eq!(compared, declared);
    println!("{} constants equal", all.len());
}

/// `IBV_WC_SUCCESS` and so on, as the header numbers them.
macro_rules! statuses {
    ($($name:ident)*) => {
        [$((ibverbs_sys::ibv_wc_status::$name, stringify!($name))),*]
    };
}

#[test]
fn statuses_are_theirs() {
    let theirs = statuses! {
        IBV_WC_SUCCESS IBV_WC_LOC_LEN_ERR IBV_WC_LOC_QP_OP_ERR IBV_WC_LOC_EEC_OP_ERR
        IBV_WC_LOC_PROT_ERR IBV_WC_WR_FLUSH_ERR IBV_WC_MW_BIND_ERR IBV_WC_BAD_RESP_ERR
        IBV_WC_LOC_ACCESS_ERR IBV_WC_REM_INV_REQ_ERR IBV_WC_REM_ACCESS_ERR IBV_WC_REM_OP_ERR
        IBV_WC_RETRY_EXC_ERR IBV_WC_RNR_RETRY_EXC_ERR IBV_WC_LOC_RDD_VIOL_ERR
        IBV_WC_REM_INV_RD_REQ_ERR IBV_WC_REM_ABORT_ERR IBV_WC_INV_EECN_ERR
        IBV_WC_INV_EEC_STATE_ERR IBV_WC_FATAL_ERR IBV_WC_RESP_TIMEOUT_ERR IBV_WC_GENERAL_ERR
        IBV_WC_TM_ERR IBV_WC_TM_RNDV_INCOMPLETE
    };
    let ours = abi::WC_STATUSES.map(|(number, name, _)| (number, name));
    assert_eq!(ours, theirs);
    println!("{} statuses equal", theirs.len());
}

/// The types of a function's arguments and, last, of its result.
trait Signature {
    fn types() -> Vec<String>;
}

/// A type's name without the crates and modules that it is in.
fn bare<T>() -> String {
    let words = type_name::<T>().split(' ');
    let bare = words.map(|word| word.rsplit("::").next().unwrap_or(word));
    // The header's way to hide which of two versions of a struct is meant.
    bare.collect::<Vec<_>>().join(" ").replace("_compat_ibv_", "ibv_")
}

macro_rules! signature_of {
    ($($argument:ident)*) => {
        impl<R, $($argument),*> Signature for unsafe extern "C" fn($($argument),*) -> R {
            fn types() -> Vec<String> {
                vec![$(bare::<$argument>(),)* bare::<R>()]
            }
        }
    };
}

signature_of!();
signature_of!(A);
signature_of!(A B);
signature_of!(A B C);
signature_of!(A B C D);
signature_of!(A B C D E);

impl<F: Signature> Signature for Option<F> {
    fn types() -> Vec<String> {
        F::types()
    }
}

/// Of a field that holds a function.
fn held_by<T, F: Signature>(_: fn(&T) -> &F) -> Vec<String> {
    F::types()
}

/// Of the function that this would return; never called, so that no such function need be there.
fn returned_by<F: Signature>(_: impl FnOnce() -> F) -> Vec<String> {
    F::types()
}

macro_rules! functions {
    ($($field:ident = $function:ident($($hole:tt)*))*) => {
        vec![$((
            stringify!($function),
            held_by(|functions: &Functions| &functions.$field),
            returned_by(|| ibverbs_sys::$function as unsafe extern "C" fn($($hole)*) -> _),
        )),*]
    };
}

macro_rules! operations {
    ($($field:ident)*) => {
        vec![$((
            stringify!($field),
            held_by(|operations: &abi::ibv_context_ops| &operations.$field),
            held_by(|operations: &ibverbs_sys::ibv_context_ops| &operations.$field),
        )),*]
    };
}

#[test]
fn signatures_are_theirs() {
    let functions = functions! {
        fork_init = ibv_fork_init()
        get_device_list = ibv_get_device_list(_)
        free_device_list = ibv_free_device_list(_)
        get_device_name = ibv_get_device_name(_)
        open_device = ibv_open_device(_)
        close_device = ibv_close_device(_)
        query_device = ibv_query_device(_, _)
        query_port = ibv_query_port(_, _, _)
        query_gid = ibv_query_gid(_, _, _, _)
        query_pkey = ibv_query_pkey(_, _, _, _)
        alloc_pd = ibv_alloc_pd(_)
        dealloc_pd = ibv_dealloc_pd(_)
        reg_mr = ibv_reg_mr(_, _, _, _)
        dereg_mr = ibv_dereg_mr(_)
        create_comp_channel = ibv_create_comp_channel(_)
        destroy_comp_channel = ibv_destroy_comp_channel(_)
        create_cq = ibv_create_cq(_, _, _, _, _)
        destroy_cq = ibv_destroy_cq(_)
        get_cq_event = ibv_get_cq_event(_, _, _)
        ack_cq_events = ibv_ack_cq_events(_, _)
        create_qp = ibv_create_qp(_, _)
        modify_qp = ibv_modify_qp(_, _, _)
        destroy_qp = ibv_destroy_qp(_)
    };
    let ours: Vec<_> = Functions::SIGNATURES.iter().map(|(symbol, _)| *symbol).collect();
    assert_eq!(functions.iter().map(|(symbol, ..)| *symbol).collect::<Vec<_>>(), ours);
    let operations = operations! { poll_cq req_notify_cq post_send post_recv };
    for (symbol, ours, theirs) in functions.iter().chain(&operations) {
        assert_eq!(ours, theirs, "{symbol}");
    }
    println!("{} functions and {} operations equal", functions.len(), operations.len());
}
