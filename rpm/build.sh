#!/bin/sh
# Build the source tarball and all packages into dist/. Plain rpmbuild; on
# Debian it knows no Fedora package, so what a spec asks for is not checked.
#
#   rpm/build.sh            everything
#   rpm/build.sh source     the tarball and the specs
set -eu
cd "$(dirname "$0")/.."
umask 022
version=$(cat version)
name=qubes-vpn-$version
dist=$(realpath -m "${DIST:-dist}")
work=$(realpath -m "${WORK:-build/rpm}")
# the same sources give the same bytes: the time is that of the last commit
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1)}
export SOURCE_DATE_EPOCH="$epoch"

files() {
	if git rev-parse --git-dir >/dev/null 2>&1; then
		git ls-files -z
	else
		find . -type f -not -path './dist/*' -not -path './build/*' \
			-printf '%P\0'
	fi
}

source_files() {
	mkdir -p "$dist" "$work"
	files | LC_ALL=C sort -z >"$work/files"
	# a file that was deleted but not committed is not there
	tar --null --no-recursion --ignore-failed-read -T "$work/files" \
		--sort=none --format=gnu --mtime="@$epoch" \
		--owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX,go-w \
		--transform "s,^,$name/," -cf - |
		gzip -n >"$dist/$name.tar.gz"
	changelog="* $(LC_ALL=C date -u -d "@$epoch" '+%a %b %d %Y') \
qubes-vpn developers <qubes-vpn@localhost> - $version-$(cat rel)
- See the history of the project."
	for spec in rpm/*.spec.in; do
		sed -e "s/@VERSION@/$version/" -e "s/@REL@/$(cat rel)/" "$spec" |
			while IFS= read -r line; do
				case $line in
				@CHANGELOG@) printf '%s\n' "$changelog" ;;
				*) printf '%s\n' "$line" ;;
				esac
			done >"$work/$(basename "${spec%.in}")"
	done
}

packages() {
	for spec in "$work"/*.spec; do
		rpmbuild --quiet --nodeps -ba \
			--define "_topdir $work" \
			--define "_sourcedir $dist" \
			--define "_rpmdir $dist" \
			--define "_srcrpmdir $dist" \
			--define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' \
			--define 'use_source_date_epoch_as_buildtime 1' \
			--define 'clamp_mtime_to_source_date_epoch 1' \
			--define '_buildhost localhost' \
			"$spec"
	done
	ls "$dist"/*.rpm
}

source_files
[ "${1:-}" = source ] || packages
