//go:build !judges

package main

// withJudges is whether TestTour runs the commands that need certbot.
const withJudges = false
