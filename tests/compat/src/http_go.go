// serve FILE PORT | get URL TIMES AT_ONCE SHA256: one connection for each request.
// serve-udp FILE PORT | get-udp HOST:PORT TIMES AT_ONCE SHA256: one socket for each.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func serve(file, port string) {
	http.HandleFunc("/blob", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	server := &http.Server{Addr: ":" + port}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	over := make(chan struct{})
	go func() {
		<-stop
		server.Shutdown(context.Background())
		close(over)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-over
}

func get(client *http.Client, url, want string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, response.Body); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", digest.Sum(nil)); got != want {
		return fmt.Errorf("another digest")
	}
	return nil
}

// A datagram asks for the piece of its number; an empty piece is the end. No side repeats anything.
const piece = 16384

func serveUDP(file, port string) {
	data, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	socket, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		log.Fatal(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		socket.Close()
	}()
	request := make([]byte, 4)
	for {
		_, from, err := socket.ReadFrom(request)
		if err != nil {
			return
		}
		at := int(binary.BigEndian.Uint32(request)) * piece
		answer := append([]byte{}, request...)
		if at < len(data) {
			end := at + piece
			if end > len(data) {
				end = len(data)
			}
			answer = append(answer, data[at:end]...)
		}
		if _, err := socket.WriteTo(answer, from); err != nil {
			log.Fatal(err)
		}
	}
}

func getUDP(where, want string) error {
	socket, err := net.Dial("udp", where)
	if err != nil {
		return err
	}
	defer socket.Close()
	digest := sha256.New()
	request, answer := make([]byte, 4), make([]byte, 4+piece)
	for number := uint32(0); ; number++ {
		binary.BigEndian.PutUint32(request, number)
		if _, err := socket.Write(request); err != nil {
			return err
		}
		socket.SetReadDeadline(time.Now().Add(30 * time.Second))
		length, err := socket.Read(answer)
		if err != nil {
			return err
		}
		if length < 4 || binary.BigEndian.Uint32(answer) != number {
			return fmt.Errorf("another piece")
		}
		if length == 4 {
			break
		}
		digest.Write(answer[4:length])
	}
	if got := fmt.Sprintf("%x", digest.Sum(nil)); got != want {
		return fmt.Errorf("another digest")
	}
	return nil
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3])
		return
	}
	if os.Args[1] == "serve-udp" {
		serveUDP(os.Args[2], os.Args[3])
		return
	}
	times, _ := strconv.Atoi(os.Args[3])
	atOnce, _ := strconv.Atoi(os.Args[4])
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	once := func() error { return get(client, os.Args[2], os.Args[5]) }
	if os.Args[1] == "get-udp" {
		once = func() error { return getUDP(os.Args[2], os.Args[5]) }
	}
	jobs := make(chan struct{}, times)
	for i := 0; i < times; i++ {
		jobs <- struct{}{}
	}
	close(jobs)
	var group sync.WaitGroup
	for i := 0; i < atOnce; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for range jobs {
				if err := once(); err != nil {
					log.Fatal(err)
				}
			}
		}()
	}
	group.Wait()
}
