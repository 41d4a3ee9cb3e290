/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether an exec gave a process the capabilities of its executable file. */
#pragma once

#include "lib/kernel.h"

#define SECURE_NOROOT 1 /* securebits: root's id alone gives no capabilities */
#define INLINE_EXTENTS 5 /* UID_GID_MAP_MAX_BASE_EXTENTS */

/* The user id that a namespace's root has in the initial one; -1: it has none. */
static __always_inline __u32 root_of(struct user_namespace *ns)
{
	__u32 i, n = READ(ns, uid_map.nr_extents);
	struct uid_gid_extent e = {};

	if (n > INLINE_EXTENTS) { /* sorted by first */
		bpf_probe_read_kernel(&e, sizeof(e), READ(ns, uid_map.forward));
		return e.first ? -1 : e.lower_first;
	}
	for (i = 0; i < INLINE_EXTENTS; i++) {
		if (i >= n)
			break;
		bpf_core_read(&e, sizeof(e), &ns->uid_map.extent[i]);
		if (!e.first)
			return e.lower_first;
	}
	return -1;
}

/*
 * By what the credentials are after the exec, because the kernel keeps no note of it (cap_bprm_creds_from_file).
 * Permitted capabilities are first the file's, which are none for a file without; a user who is root by either id is then
 * given the bounding set and what is inheritable; those in the ambient set come last. So:
 * - of other users all that is not ambient is the file's;
 * - root alone by the effective id, as a set-user-id file makes one, is given root's capabilities unless the file has
 *   its own, and then has those instead;
 * - root by both ids has root's capabilities, whatever the file has;
 * - root alone by the real id has root's too, but effective ones only if the file says so.
 * It tells wrongly of a process that is being traced by one that may not trace the new program: that is left with what
 * it had, whatever the file has.
 */
static __always_inline bool has_file_capabilities(const struct cred *cred)
{
	__u64 permitted = 0, effective = 0, inheritable = 0, ambient = 0, bounding = 0;
	__u32 root = root_of(cred->user_ns);
	bool real = cred->uid.val == root, effectively = cred->euid.val == root;

	bpf_core_read(&permitted, sizeof(permitted), &cred->cap_permitted);
	bpf_core_read(&effective, sizeof(effective), &cred->cap_effective);
	bpf_core_read(&inheritable, sizeof(inheritable), &cred->cap_inheritable);
	bpf_core_read(&ambient, sizeof(ambient), &cred->cap_ambient);
	bpf_core_read(&bounding, sizeof(bounding), &cred->cap_bset);
	if (READ(cred, securebits) & SECURE_NOROOT || (!real && !effectively))
		return permitted & ~ambient;
	if (!real)
		return permitted != (bounding | inheritable);
	return !effectively && effective & ~ambient;
}
