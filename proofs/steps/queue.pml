/* Section: The queue
 * Property: each item is popped once, in the order of positions, and as it was pushed; a queue that
 *     looks empty once its pushers have ended is empty
 * Left out: the turns' wrap-around; full queues are tried again at once
 * MUTANT_CAPACITY_1: one slot, so that "holds the item" and "empty, next lap" are one turn
 * MUTANT_PUBLISH_FIRST: a pusher stores the turn, then the item
 * MUTANT_HAND_ON_FIRST: a popper hands the slot on, then reads the item
 */

#ifdef MUTANT_CAPACITY_1
#define SLOTS 1
#else
#define SLOTS 2
#endif
#define ITEMS 4

byte turn[SLOTS], item[SLOTS];
byte head, tail;
byte num_pushing = 2, num_popping = 2;

byte pushed[ITEMS]; /* by position: what the pusher that won it pushes */
byte num_popped[ITEMS + 1]; /* by item */

inline try_push(value) {
    position = tail;
    do
    :: seen = turn[position % SLOTS];
       if
       :: seen == position ->
          atomic {
              won = (tail == position);
              if
              :: won -> tail++; pushed[position] = value
              :: else -> position = tail
              fi
          };
          if :: won -> break :: else fi
       :: seen < position -> won = false; break
       :: else -> position = tail
       fi
    od;
    if
    :: won ->
#ifdef MUTANT_PUBLISH_FIRST
       turn[position % SLOTS] = position + 1;
       item[position % SLOTS] = value
#else
       item[position % SLOTS] = value;
       turn[position % SLOTS] = position + 1
#endif
    :: else
    fi
}

inline try_pop() {
    position = head;
    do
    :: seen = turn[position % SLOTS];
       if
       :: seen == position + 1 ->
          atomic {
              won = (head == position);
              if :: won -> head++ :: else -> position = head fi
          };
          if :: won -> break :: else fi
       :: seen < position + 1 -> won = false; break
       :: else -> position = head
       fi
    od;
    if
    :: won ->
#ifdef MUTANT_HAND_ON_FIRST
       turn[position % SLOTS] = position + SLOTS;
       value = item[position % SLOTS];
#else
       value = item[position % SLOTS];
       turn[position % SLOTS] = position + SLOTS;
#endif
       atomic {
           assert(value == pushed[position]);
           num_popped[value]++;
           assert(num_popped[value] == 1)
       }
    :: else
    fi
}

inline has_items(answer) {
    position = head;
    do
    :: seen = turn[position % SLOTS];
       if
       :: seen == position + 1 -> answer = true; break
       :: seen < position + 1 -> answer = false; break
       :: else -> position = head
       fi
    od
}

proctype pusher(byte first) {
    byte position, seen, value = first;
    bool won;
    do
    :: value < first + 2 -> try_push(value); if :: won -> value++ :: else fi
    :: else -> break
    od;
    num_pushing--
}

proctype popper() {
    byte position, seen, value;
    bool won, is_last, any;
    do
    :: is_last = (num_pushing == 0);
       has_items(any);
       if
       :: any -> try_pop()
       :: !any && is_last -> break
       :: else
       fi
    od;
    num_popping--
}

init {
    byte i;
    atomic {
        for (i : 0 .. SLOTS - 1) { turn[i] = i }
        run pusher(1); run pusher(3); run popper(); run popper()
    }
    num_popping == 0;
    for (i : 1 .. ITEMS) { assert(num_popped[i] == 1) }
}
