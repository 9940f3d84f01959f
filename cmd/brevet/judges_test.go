//go:build judges

package main

// withJudges is whether TestTour runs the commands that need certbot, which setup.sh --judges installs. The development
// CA connects to port 5002 of this machine then.
const withJudges = true
