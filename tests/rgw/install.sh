#!/usr/bin/env bash
# Install the packages of Ceph's object gateway (190 MB) without starting any of them as a service.
exec "$(dirname "$(readlink -f "$0")")/../packages.sh" radosgw ceph-mon ceph-osd ceph-common
